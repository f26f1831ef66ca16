"""A translated request: what the engine is asked, and what the answer shows of it. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from decoding.contract.params import Request
from server.text.message_text import MessageForm


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. text and starts (the character each token begins at) are there when the answer echoes the prompt."""

    ids: tuple[int, ...]
    text: str = ""
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """What an answer shows. logprobs: None for none, else how many alternatives beside each token's own.

    bare_stops: the stops without the names of special tokens that the text does not show.
    """

    num_choices: int = 1
    stops: tuple[str, ...] = ()
    bare_stops: tuple[str, ...] = ()
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    token_ids: bool = False
    special_tokens: bool = False
    stop_text: bool = False
    stream: bool = False
    usage_chunk: bool = False
    usage_always: bool = False
    obfuscated: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """One request per prompt. `effective` says what runs, in wire names; `message` what is read in a chat's text."""

    model: str
    prompts: tuple[Prompt, ...]
    requests: tuple[Request, ...]
    strategy: str
    effective: dict[str, Any]
    shown: Shown
    timeout: float | None = None
    message: MessageForm | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Pause tokens and latent thoughts included."""
        return sum(len(prompt.ids) for prompt in self.prompts) + sum(request.num_beside for request in self.requests)

    @property
    def num_pause_tokens(self) -> int:
        return sum(len(request.pause_ids) for request in self.requests)

    @property
    def num_latent_tokens(self) -> int:
        """The tokens around the thoughts included."""
        return sum(request.num_beside for request in self.requests) - self.num_pause_tokens
