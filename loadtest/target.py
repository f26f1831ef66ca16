"""One server to measure: where it is, how it is spoken to, and the request fields only it knows.

A dialect is what differs between OpenAI-compatible servers; it is data, so that the client has no branch for any of
them. The API key leaves this module only in the Authorization header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Endpoint = Literal["completions", "chat"]
PATHS: Mapping[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server differs.

    `extra`: fields that make it generate max_tokens tokens whatever the model says. `ready_path`: 200 when it can.
    `beam_counts`: the fields that take the number of beams, none where it has no beam search; `beam_extra`: what else
    it wants to be told then.
    """

    name: str
    ready_path: str
    extra: Mapping[str, Any]
    beam_counts: tuple[str, ...] = ()
    beam_extra: Mapping[str, Any] = field(default_factory=dict)


DIALECTS = (
    Dialect(name="polydecode", ready_path="/ready", extra={"ignore_eos": True}, beam_counts=("num_beams", "n")),
    Dialect(name="openai", ready_path="/v1/models", extra={}),
    # vLLM does not stream beams, and returns as many as it keeps.
    Dialect(
        name="vllm",
        ready_path="/health",
        extra={"ignore_eos": True},
        beam_counts=("n",),
        beam_extra={"use_beam_search": True, "stream": None, "stream_options": None},
    ),
    Dialect(name="llama-cpp", ready_path="/health", extra={"ignore_eos": True}),
    # transformers refuses ignore_eos (422) but takes a whole generation config as a JSON string; an EOS id below
    # zero is none. The first request's config is the one its continuous batching keeps, so every request sends it.
    Dialect(
        name="transformers",
        ready_path="/health",
        extra={"generation_config": '{"eos_token_id": -1, "do_sample": false}'},
    ),
)


def dialect(name: str) -> Dialect:
    """The dialect of that name; LookupError names those there are."""
    for entry in DIALECTS:
        if entry.name == name:
            return entry
    raise LookupError(f"no dialect {name!r}; there are {', '.join(d.name for d in DIALECTS)}")


@dataclass(frozen=True, slots=True)
class Target:
    """`url` has no path of the API in it. `extra` goes over the dialect's fields; a None in it takes a field out."""

    url: str
    dialect: Dialect
    endpoint: Endpoint = "completions"
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return PATHS[self.endpoint]

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def body(self, prompt: str, max_tokens: int, beams: int = 1) -> dict[str, Any]:
        """A greedy request that asks for usage, streamed; one for beams, where the server streams them.

        Raises LookupError for beams that the server has not.
        """
        fields = {
            "model": self.model,
            **self._prompt(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.dialect.extra,
            **self._beams(beams),
            **self.extra,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _beams(self, beams: int) -> dict[str, Any]:
        if beams == 1:
            return {}
        if not self.dialect.beam_counts:
            raise LookupError(f"{self.dialect.name} has no beam search")
        return {**dict.fromkeys(self.dialect.beam_counts, beams), **self.dialect.beam_extra}

    def _prompt(self, prompt: str) -> dict[str, Any]:
        if self.endpoint == "chat":
            return {"messages": [{"role": "user", "content": prompt}]}
        return {"prompt": prompt}


def base_url(url: str) -> str:
    """The server's root from what people paste: without a trailing slash or the SDK's /v1. ValueError if it is none."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    return url.rstrip("/").removesuffix("/v1")
