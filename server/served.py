"""What the loaded model is to the HTTP side: names, sizes, tokenizer. The batcher fills it once the worker is ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decoding.contract.frames import Beside, EncoderInfo
from decoding.contract.params import DRAFT, MAIN, PoolBy
from server.settings.sections import LimitSettings
from server.text.grammar_check import GrammarCheck
from server.text.tokenizer import Tokenizer
from server.text.tool_parsers.tool_format import ToolFormat
from server.work_queue import WorkQueue


@dataclass(frozen=True, slots=True)
class Served:
    """num_layers, ties_embeddings, beside, encoder, has_head: as in `frames.Loaded`.

    names: the first is the default.
    vocab_size: the width of the logits; valid token ids are below it.
    created: in Unix seconds.
    grammars: tells whether those of requests compile.
    tools: how calls are written; None where no tools are taken.
    generation_defaults: wire fields that hold where a request says nothing.
    pool_by: how embeddings are made.
    max_prompt_scores: of an answer's choices together.
    writing: makes the text of long prompts, for those who hold a reservation.
    """

    names: tuple[str, ...]
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    created: int
    tokenizer: Tokenizer
    architecture: str
    num_layers: int = 0
    ties_embeddings: bool = False
    beside: tuple[Beside, ...] = ()
    grammars: GrammarCheck = field(default_factory=GrammarCheck)
    tools: ToolFormat | None = None
    has_reasoning: bool = False
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)
    encoder: EncoderInfo | None = None
    has_head: bool = True
    pool_by: PoolBy = "mean"
    max_prompt_scores: int = LimitSettings.model_fields["max_prompt_scores"].default
    writing: WorkQueue = field(default_factory=lambda: WorkQueue("prompt writing", 1))

    @property
    def model_names(self) -> tuple[str, ...]:
        """What a request's fields may call the loaded models."""
        return (MAIN, *(each.name for each in self.beside))

    @property
    def has_draft(self) -> bool:
        return DRAFT in self.model_names

    @property
    def max_prompt_len(self) -> int:
        """A prompt is the encoder's source where there is one, and counts against no answer."""
        return self.max_model_len if self.encoder is None else self.encoder.max_source_len
