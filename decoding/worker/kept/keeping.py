"""From a loaded model to its description, where that is all there is of it, and the proof that it is.

A description is only kept if what is rebuilt of it gives the very bits that the model gives, and is only used if it
gives them again.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from decoding.attention.compiled import CompiledAttention
from decoding.attention.interface import Batch
from decoding.kernels.cpu.panels import PanelLinear, fits_bfloat16
from decoding.model.elementwise import FusedRMSNorm
from decoding.model.fused import FusedLayer
from decoding.model.llama.parts import Norm
from decoding.model.model import Model
from decoding.worker.kept.description import Description, Layer, OutputMatrix, Rotation
from decoding.worker.kept.rebuilt import assembled

TRIAL_TOKENS = 24
PROOF_TOKENS = 3
REPLACED = 5  # the token of a trial whose embedding is a vector of our own


def describe(model: Model) -> Description | None:
    """None where the model is more than can be kept, or has parts of other kinds."""
    body: Any = model.body
    base = getattr(body, "base", None)
    if base is None or not model.is_compiled or not isinstance(model.attention, CompiledAttention):
        return None
    layers: list[Any] = [each for each in base.modules() if isinstance(each, FusedLayer)]
    vectors, norm, rotary = _vectors(base), getattr(base, "norm", None), getattr(base, "rotary_emb", None)
    frequencies, scale = getattr(rotary, "inv_freq", None), getattr(rotary, "attention_scaling", None)
    output = model.output_matrix
    if not layers or vectors is None or not isinstance(norm, FusedRMSNorm) or not isinstance(output, PanelLinear):
        return None
    if not isinstance(frequencies, torch.Tensor) or not isinstance(scale, int | float):
        return None
    traced = body.traced
    kept = []
    for index, (spec, shape) in enumerate(zip(traced.specs, traced.shapes, strict=True)):
        kept.append(Layer(spec, shape, *layers[0].stack.held(index)))
    description = Description(
        info=model.info,
        num_positions=traced.num_positions,
        vectors=vectors,
        rotation=Rotation(frequencies.float(), float(scale)),
        layers=tuple(kept),
        norm=Norm(norm.weight.detach(), norm.eps),
        output=OutputMatrix(output.panels, output.shape, output.bias),
        cache_dtype=model.attention.pages.dtype,
    )
    same = assembled(description, model.attention, layers[0].stack, output)
    return description if _give_the_same(model, same) else None


@torch.inference_mode()
def proof_of(model: Model) -> str:
    """The digest of what it gives for a few tokens at its last positions: every weight has a part in it."""
    ids = np.arange(3, 3 + PROOF_TOKENS) % model.info.vocab_size
    batch = Batch.of_one_row(ids, model.attention.page_size)
    model.attention.allocate(1 + len(batch.page_tables[0]))
    hidden = model.forward(batch, shift=max(0, model.info.max_model_len - PROOF_TOKENS)).last
    logits = model.head(hidden)
    model.attention.allocate(0)
    return hashlib.sha256(hidden.numpy().tobytes() + logits.numpy().tobytes()).hexdigest()


@torch.inference_mode()
def _give_the_same(model: Model, other: Model) -> bool:
    return all(torch.equal(one, two) for one, two in zip(_given(model), _given(other), strict=True))


def _given(model: Model) -> list[torch.Tensor]:
    """Every layer's states and the logits, at the first, the last and some middle positions."""
    info, size = model.info, model.attention.page_size
    ids = np.arange(3, 3 + TRIAL_TOKENS) % info.vocab_size
    last = max(0, info.max_model_len - TRIAL_TOKENS)
    plain = Batch.of_one_row(ids, size)
    vector = torch.linspace(-1, 1, info.hidden_size)
    given = replace(plain, embeds={REPLACED: vector})
    trials = [(plain, 0), (plain, last), (plain, last // 3), (given, 0)]
    model.attention.allocate(1 + -(-TRIAL_TOKENS // size))
    found = []
    for batch, shift in trials:
        hidden = model.forward(batch, tuple(range(info.num_layers + 1)), shift=shift)
        states = [hidden.layers[index] for index in sorted(hidden.layers)]
        found += [*states, hidden.last, model.head(hidden.last), model.project(hidden.last)]
    model.attention.allocate(0)
    return [each.clone() for each in found]


def _vectors(base: Any) -> torch.Tensor | None:
    """Of the embedding, in sixteen bits where these hold them."""
    embedding = base.get_input_embeddings()
    found = getattr(embedding, "weight", None)
    found = getattr(embedding, "vectors", None) if found is None else found
    if not isinstance(found, torch.Tensor) or found.dim() != 2:
        return None
    found = found.detach()
    return found.bfloat16() if found.dtype == torch.float32 and fits_bfloat16(found) else found
