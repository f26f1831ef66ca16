"""The wire fields that say what form an answer has: OpenAI's response_format, and `structured` for everything else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from server.wire.base import Items, Wire, option

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class JsonSchema(Wire):
    name: Name = Field(description="A name of the client's; it has no effect.")
    schema_: dict[str, Any] = Field(alias="schema", description="The JSON schema that the answer meets.")
    description: str | None = option("A description of the client's; it has no effect.")
    strict: bool | None = option("false: leave out what of the schema cannot be enforced, rather than refuse it.", True)


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"] = Field(description="Free text, any JSON object, or a schema.")
    json_schema: JsonSchema | None = option("With type json_schema: which one.")


class Structured(Wire):
    """Exactly one of them."""

    json_: dict[str, Any] | None = Field(
        None, alias="json", description="A JSON schema.", json_schema_extra={"default": None}
    )
    regex: str | None = option("A regular expression (Rust's syntax) that the whole answer matches.")
    choice: Items[str] | None = option("The answer is one of these texts.")
    grammar: str | None = option("A Lark grammar in llguidance's dialect.")


class StructureFields(Wire):
    response_format: ResponseFormat | None = option("JSON answers: any object, or one that meets a schema.")
    structured: Structured | None = option("Answers that match a schema, a regular expression, a choice or a grammar.")
