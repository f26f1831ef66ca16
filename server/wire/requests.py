"""The requests of OpenAI's API and our extensions, as they come over the wire: types and fixed bounds.

Strict: no number from a string or a boolean, no NaN, no unknown field. null means the default everywhere. What depends
on the settings is checked in `bounds.py`, what excludes what in `asked.py`, what depends on the model in
`translate.py`; `unknown.py` refuses what is not supported yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from decoding.contract.params.declared import MAX_INT
from decoding.contract.plugins import NO_PLUGINS, Plugins
from server.wire.base import Count, Deadline, Items, Positive, TokenId, Wire, option
from server.wire.chat import ConversationFields, Messages, ToolFields
from server.wire.strategies import Context, SearchFields
from server.wire.structure import StructureFields
from server.wire.tokens import LatentThoughts, PauseTokens, TokenFields

PROMPT = "a string, a list of strings, a list of token ids or a list of lists of token ids, none of them empty"
CONTEXT = "a string or a list of token ids"

TOOL_CHOICE = '"none", "auto", "required", {"type": "function", "function": {"name": …}} or of type allowed_tools'


class StreamOptions(Wire):
    include_usage: bool | None = option("A last chunk with the usage.", False)
    continuous_usage_stats: bool | None = option("The usage so far in each chunk.", False)
    include_obfuscation: bool | None = option("Pad events, so that their sizes say less of the text.", False)


class Decoding(TokenFields, SearchFields, StructureFields):
    """The fields that completions and chat share. PLUGINS: whose fields are among them (`plugins.py`)."""

    PLUGINS: ClassVar[Plugins] = NO_PLUGINS

    FORMS: ClassVar[Mapping[str, str]] = {
        "stop": "a string or a list of strings",
        "logit_bias": "a map from token ids, as strings, to numbers in [-100, 100]",
        "early_stopping": 'true, false or "never"',
        "dola_layers": '"low", "high" or a list of layer numbers',
        "exponential_decay_length_penalty": "a list of two numbers: a length and a factor",
        "negative_prompt": CONTEXT,
        "kl_guided.prompt": CONTEXT,
        "context_aware.prompt": CONTEXT,
        "pmi.prompt": CONTEXT,
    }

    model: str | None = option("A name that GET /v1/models lists; default: the first.")
    stream: bool | None = option("Answer as server-sent events.", False)
    stream_options: StreamOptions | None = option("What a stream says beside the text.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = option("Same seed, same answer; default: drawn.")

    stop: str | Items[str] | None = option("Texts that end a choice.")
    stop_token_ids: Items[TokenId] | None = option("Tokens that end a choice.")
    ignore_eos: bool | None = option("Go on behind EOS.", False)
    min_tokens: Count | None = option("No end of the text before that many tokens.", 0)
    min_new_tokens: Count | None = option("Another name of min_tokens.", 0)
    pause_tokens: PauseTokens | None = option("Filler between prompt and answer, never part of the answer.")
    latent_thoughts: LatentThoughts | None = option("Thoughts without words between prompt and answer.")

    forced_bos_token_id: TokenId | None = option(
        "First token of the answer of an encoder-decoder model, its language for many; default: the model's own."
    )

    prompt_logprobs: Count | None = option("Log-probs of the prompt's tokens, and of that many alternatives.")
    logprobs_mode: Literal["raw", "processed"] | None = option("Log-probs of the model, or of the pipeline.", "raw")
    return_token_ids: bool | None = option("Also return token ids.", False)
    skip_special_tokens: bool | None = option("Leave special tokens out of the text.", True)
    include_stop_str_in_output: bool | None = option("Leave the stop text in the answer.", False)
    trace: bool | None = option("Also return what the strategy saw and did at each step.", False)

    cache_salt: str | None = option("Requests share cached prompts only with those of the same salt.")
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = option("Lower runs first, if allowed.", 0)
    timeout: Deadline | None = option("Seconds in which the answer must be complete.")


def _prompt_form(prompt: object) -> str:
    """The first entry decides: pydantic would try every form on every entry of what may be a million ids."""
    first = prompt[0] if isinstance(prompt, list) and prompt else prompt
    if prompt is first:
        return "text"
    return "texts" if isinstance(first, str) else "id_lists" if isinstance(first, list) else "ids"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Items[str], Tag("texts")]
    | Annotated[Items[TokenId], Tag("ids")]
    | Annotated[Items[Items[TokenId]], Tag("id_lists")],
    Discriminator(_prompt_form),
]


class CompletionFields(Decoding):
    """All that a completion takes beside its prompt."""

    FORMS: ClassVar[Mapping[str, str]] = {**Decoding.FORMS, "decoder_prompt": CONTEXT}

    decoder_prompt: Context | None = option("Text or token ids that an encoder-decoder model's answer goes on from.")
    suffix: str | None = option("Text behind the gap; refused unless the model can fill in the middle.")
    max_tokens: Count | None = option("Most tokens of a choice.", 16)
    max_completion_tokens: Count | None = option("Another name of max_tokens.")
    echo: bool | None = option("Put the prompt before the answer.", False)
    logprobs: Count | None = option("Log-probs of the tokens, and of that many alternatives.")


class CompletionRequest(CompletionFields):
    """POST /v1/completions."""

    FORMS: ClassVar[Mapping[str, str]] = {**CompletionFields.FORMS, "prompt": PROMPT}

    prompt: Prompt = Field(description="Text or token ids, or a list of either: one answer each.")


class EmbeddingRequest(Wire):
    """POST /v1/embeddings. How vectors are pooled is the server's setting."""

    FORMS: ClassVar[Mapping[str, str]] = {"input": PROMPT}

    input: Prompt = Field(description="Text or token ids, or a list of either: one vector each.")
    model: str | None = option("A name that GET /v1/models lists; default: the first.")
    encoding_format: Literal["float", "base64"] | None = option("Numbers, or base64 of float32.", "float")
    cache_salt: str | None = option("Requests share cached prompts only with those of the same salt.")
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = option("Lower runs first, if allowed.", 0)
    timeout: Deadline | None = option("Seconds in which the answer must be complete.")


class ChatRequest(Decoding, ToolFields):
    """POST /v1/chat/completions."""

    FORMS: ClassVar[Mapping[str, str]] = {**Decoding.FORMS, "tool_choice": TOOL_CHOICE}

    messages: Messages = Field(description="The conversation so far.")
    max_tokens: Positive | None = option("Most tokens of a choice; default: the rest of the context.")
    max_completion_tokens: Positive | None = option("Another name of max_tokens.")
    logprobs: bool | None = option("Log-probs of the tokens.", False)
    top_logprobs: Count | None = option("Alternatives beside each token.", 0)


class TokenizeRequest(ConversationFields):
    """POST /tokenize: `prompt` or `messages`."""

    FORMS: ClassVar[Mapping[str, str]] = {"prompt": "a string"}

    model: str | None = option("A name that GET /v1/models lists; default: the first.")
    prompt: str | None = option("The text; either it or messages.")
    messages: Messages | None = option("The chat, to be put in the model's chat template.")
    add_special_tokens: bool | None = option("Put BOS and the like around it; default: only around a prompt.")
    return_token_strs: bool | None = option("Also return the tokens as text.", False)


class DetokenizeRequest(Wire):
    """POST /detokenize."""

    model: str | None = option("A name that GET /v1/models lists; default: the first.")
    tokens: Items[TokenId] = Field(description="Token ids.")
