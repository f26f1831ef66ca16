"""Tiny random models that any transformers release builds bit for bit: the models behind `tiny_greedy.json`.

Initialisation differs between releases, so nothing of it is used. Every parameter is filled from one torch.Generator,
in the sorted order of `named_parameters()` (a tied weight counts once, under the name that transformers keeps), with
integers drawn uniformly from -443 … 443 and divided by 1024 (standard deviation 0.25, exact in float32 on every
machine). One-dimensional weights, which are the scales of the norms, get 1 added.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LIMIT, SCALE = 443, 1024


@dataclass(frozen=True, slots=True)
class TinySpec:
    """One tiny model: its configuration as AutoConfig takes it, the seed of its weights, the ids that end a text."""

    model_type: str
    config: dict[str, Any]
    seed: int
    eos_token_ids: tuple[int, ...]


def build(spec: TinySpec) -> Any:
    """The model of `spec` in float32 and eval mode; attention is eager."""
    config = AutoConfig.for_model(spec.model_type, **spec.config)
    auto: Any = AutoModelForCausalLM  # untyped in 5.x
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    fill(model, spec.seed)
    return model


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int) -> None:
    """Overwrite every parameter by the rule above."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        drawn = torch.randint(-LIMIT, LIMIT + 1, parameter.shape, generator=generator)
        is_norm_scale = parameter.dim() == 1 and name.endswith(".weight")
        parameter.copy_(drawn / SCALE + (1.0 if is_norm_scale else 0.0))


@torch.no_grad()
def perturbed(model: Any, noise: int, seed: int = 0) -> Any:
    """The model after integers drawn from -noise … noise, divided by 1024, were added: a draft that mostly agrees."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        parameter.add_(torch.randint(-noise, noise + 1, parameter.shape, generator=generator) / SCALE)
    return model


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over name and little-endian bytes of every parameter, in sorted name order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
