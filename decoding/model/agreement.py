"""Whether a model of ours gives what transformers' own gives, tried before anything is served.

Guards against what no flag tells: biases that live in a model's mask, state between layers, a window unknown to us, a
scale that grows with the position, a head that reads more than the last hidden states.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from decoding.attention.interface import Batch, Memories
from decoding.model.compatibility import UnsupportedModel, position_limit
from decoding.model.model import Model

TRIAL_TOKENS = 24
# Per token, relative to the norm of the model's own hidden state.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
ROUNDED_TOLERANCE = 0.2  # where each product rounds its inputs to eight bits, and keys and values are bfloat16


class Agreement:
    """Holds what a model gives of its own, to compare with what it gives over our attention: at its first positions
    and, where it can be told of others, at its last ones."""

    def __init__(self, lm: Any, *, rounds_inputs: bool = False) -> None:
        config = lm.config.get_text_config(decoder=True)
        self._architecture = type(lm).__name__
        self._tolerance = ROUNDED_TOLERANCE if rounds_inputs else TOLERANCE[lm.dtype]
        self._is_exact = lm.dtype == torch.float32 and not rounds_inputs
        ids = torch.arange(3, 3 + 2 * TRIAL_TOKENS) % config.vocab_size
        self._ids, self._source = ids.view(2, TRIAL_TOKENS).numpy()
        # Of transformers' own implementations the eager one leaves nothing out; sdpa has ignored soft caps.
        lm.set_attn_implementation("eager")
        is_seq2seq = lm.config.is_encoder_decoder
        shifts = {0} if is_seq2seq else {0, max(0, position_limit(lm) - TRIAL_TOKENS)}
        own = self._own_seq2seq if is_seq2seq else self._own
        self._expected = {shift: own(lm, shift) for shift in shifts}
        hidden, logits = self._expected[0]
        self.widths = int(config.hidden_size) if hidden is None else hidden.shape[-1], logits.shape[-1]

    def check(self, model: Model) -> None:
        """Raise UnsupportedModel unless `model` gives the same; leaves the backend without pages."""
        size = model.attention.page_size
        batch, count = Batch.of_one_row(self._ids, size), -(-TRIAL_TOKENS // size)
        model.attention.allocate(1 + 2 * count)
        if model.encoder is not None:
            source = Batch.of_one_row(self._source, size, first_page=1 + count)
            model.encoder.encode(source)
            batch = replace(batch, memories=Memories(source.kv_lengths, source.page_tables))
        for shift, (hidden, logits) in self._expected.items():
            found = model.forward(batch, shift=shift).last
            if hidden is not None:
                self._compare(found.float(), hidden)
            self._compare(model.head(found), logits)
        model.attention.allocate(0)

    def _own(self, lm: Any, shift: int) -> tuple[torch.Tensor | None, torch.Tensor]:  # [T, hidden], [T, vocab]
        ids = torch.from_numpy(self._ids).to(lm.device)[None]
        positions = torch.arange(shift, shift + TRIAL_TOKENS, device=lm.device)[None]
        own = {"input_ids": ids, "position_ids": positions, "use_cache": False}
        hidden = lm.base_model(**own).last_hidden_state[0].float()
        return hidden, lm(**own).logits[0].float()

    def _own_seq2seq(self, lm: Any, _shift: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Not every family hands out the states that its head reads: the logits have to do."""
        ids, source = (torch.from_numpy(each).to(lm.device)[None] for each in (self._ids, self._source))
        return None, lm(input_ids=source, decoder_input_ids=ids, use_cache=False).logits[0].float()

    def _compare(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        error = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
        # In half precision a mixture's router may flip for a token or two, and a token that few others look at may
        # magnify what rounding takes from it; in float32 nothing may differ.
        worst = float(error.max() if self._is_exact else error.median())
        if not worst < self._tolerance:
            reason = f"disagrees with itself over paged attention (error {worst:.3g})"
            raise UnsupportedModel(self._architecture, reason)
