"""From hidden states to logits: transformers' own head, with whatever the model scales, caps and adds."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class Head:
    """headless: a model whose forward turns hidden states into logits. products: the mode that its products need."""

    def __init__(
        self, headless: Any, output_matrix: nn.Module, products: AbstractContextManager[Any] | None = None
    ) -> None:
        self.output_matrix = output_matrix
        self._headless = headless
        self._products = products or nullcontext()
        self._is_seq2seq = headless.config.is_encoder_decoder

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab]
        given = hidden[None]
        seq2seq = {"decoder_inputs_embeds": given, "encoder_outputs": (given,)}
        inputs: dict[str, Any] = seq2seq if self._is_seq2seq else {"inputs_embeds": given}
        with self._products:
            logits: torch.Tensor = self._headless(**inputs, use_cache=False).logits
        return logits[0]

    def project(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab]
        """The output matrix alone."""
        with self._products:
            logits: torch.Tensor = self.output_matrix(hidden)
        return logits


@dataclass
class Given(BaseModelOutputWithPast):
    """A body's output of hidden states alone: whatever else a head looks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Passthrough(nn.Module):
    """Stands where a body was, and hands on the hidden states it is given."""

    @property
    def decoder(self) -> _Passthrough:
        return self

    def forward(
        self,
        *_args: Any,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        **_options: Any,
    ) -> Given:
        return Given(last_hidden_state=inputs_embeds if decoder_inputs_embeds is None else decoder_inputs_embeds)


def headless(lm: PreTrainedModel) -> Any:
    """The model without its body, or without its encoder and decoder, sharing all else."""
    head = copy.copy(lm)
    bodies = [lm.base_model_prefix] if lm.base_model_prefix in lm._modules else ["encoder", "decoder"]
    head._modules = {**lm._modules, **{name: _Passthrough() for name in bodies}}
    return head
