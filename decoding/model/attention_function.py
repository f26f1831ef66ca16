"""Our attention as one of transformers' attention implementations.

Owns the registered function and the reading of its calls: which layer, window, soft cap and sinks. One keyword of the
model's forward, NAME, carries the backend and its plan down to every layer; for models whose layers do not hand
keywords on to their attention, `carrying` holds the same for the time of a forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from decoding.attention.interface import LayerSpec, PagedAttention
from decoding.attention.pages import LayerShape
from decoding.model.compatibility import UnsupportedModel, position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "polydecode"
# What attention calls may carry that changes nothing here: masks and caches are never made, dropout is off.
NEUTRAL = frozenset({"dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
                     "cache_position", "position_embeddings", "past_key_values", "output_router_logits"})  # fmt: skip


class Receiver(Protocol):
    """What travels as the keyword NAME."""

    def receive(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor: ...


_carried: ContextVar[Receiver] = ContextVar("carried")


@contextmanager
def carrying(receiver: Receiver) -> Iterator[dict[str, Receiver]]:
    """What a forward inside needs: keywords for the model, and where they do not arrive, the receiver all the same."""
    token = _carried.set(receiver)
    try:
        yield {NAME: receiver}
    finally:
        _carried.reset(token)


def attend(
    module: nn.Module,
    query: torch.Tensor,  # [1, heads, T, head_dim]
    key: torch.Tensor,  # [1, kv_heads, T, head_dim]
    value: torch.Tensor,  # [1, kv_heads, T, v_head_dim]
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The registered function. No mask is ever made for an implementation that registers no mask function."""
    if attention_mask is not None:
        raise UnsupportedModel(type(module).__name__, "makes an attention mask of its own")
    receiver: Receiver = options.pop(NAME, None) or _carried.get()
    return receiver.receive(module, query, key, value, options), None


def register(causal_lm: PreTrainedModel) -> None:
    """Make the model use our attention, and on a CPU the experts' forward whose products can be watched.

    On a GPU that one would wait for the router in every layer; transformers' default, grouped products, does not.
    """
    from transformers import AttentionInterface  # noqa: PLC0415 - the name and `carrying` must not wait for it

    AttentionInterface.register(NAME, attend)
    causal_lm.set_attn_implementation(NAME)
    if causal_lm.config._attn_implementation != NAME:
        raise UnsupportedModel(type(causal_lm).__name__, "does not accept another attention implementation")
    if causal_lm.device.type != "cpu":
        return
    if hasattr(causal_lm, "set_experts_implementation") and causal_lm._can_set_experts_implementation():
        causal_lm.set_experts_implementation("eager")


@dataclass(frozen=True, slots=True)
class _Bound:
    specs: tuple[LayerSpec, ...]
    attention: PagedAttention
    plan: Any

    def receive(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _options: dict[str, Any]
    ) -> torch.Tensor:
        layer: Any = module.layer_idx
        return self.attention.forward(self.specs[layer], query, key, value, self.plan)


@dataclass(frozen=True, slots=True)
class TracedAttention:
    """What every layer asks of attention; the same for every call, so one trial forward tells it.

    num_positions: that a row may have.
    """

    specs: tuple[LayerSpec, ...]
    shapes: tuple[LayerShape, ...]
    num_positions: int

    def bind(self, attention: PagedAttention, plan: Any) -> Receiver:
        return _Bound(self.specs, attention, plan)


class _Tracer:
    """Receives the calls of one trial forward, computes nothing, and notes what each layer asks for."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        self._architecture = type(causal_lm).__name__
        self._config = causal_lm.config.get_text_config(decoder=True)
        self.specs: dict[int, LayerSpec] = {}
        self.shapes: dict[int, LayerShape] = {}

    def receive(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        layer: Any = getattr(module, "layer_idx", None)
        if not isinstance(layer, int) or layer in self.specs:
            raise UnsupportedModel(self._architecture, "does not number its attention layers")
        if getattr(module, "is_causal", True) is False or options.pop("is_causal", True) is False:
            raise UnsupportedModel(self._architecture, "attends without a causal mask")
        self.specs[layer] = self._spec(layer, query, dict(options))
        self.shapes[layer] = LayerShape(query.shape[1], key.shape[1], query.shape[3], value.shape[3])
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    def _spec(self, layer: int, query: torch.Tensor, options: dict[str, Any]) -> LayerSpec:
        scaling = options.pop("scaling", None)
        window = options.pop("sliding_window", self._configured_window(layer))
        spec = LayerSpec(
            layer,
            float(query.shape[-1] ** -0.5 if scaling is None else scaling),
            None if window is None else int(window),
            options.pop("softcap", None),
            options.pop("s_aux", None),
        )
        foreign = sorted(name for name, value in options.items() if name not in NEUTRAL and value is not None)
        if foreign:
            raise UnsupportedModel(self._architecture, f"passes {', '.join(foreign)} to its attention")
        return spec

    def _configured_window(self, layer: int) -> int | None:
        """For models whose window is known to their mask alone."""
        types = getattr(self._config, "layer_types", None)
        is_sliding = types is not None and types[layer] == "sliding_attention"
        return self._config.sliding_window if is_sliding else None


def trace(causal_lm: PreTrainedModel) -> TracedAttention:
    """Run one token through the model to learn what each layer's attention is."""
    tracer = _Tracer(causal_lm)
    ids = torch.zeros(1, 1, dtype=torch.long, device=causal_lm.device)
    with carrying(tracer) as keywords:
        causal_lm.base_model(input_ids=ids, position_ids=ids, use_cache=False, **keywords)
    num_layers = causal_lm.config.get_text_config(decoder=True).num_hidden_layers
    if sorted(tracer.specs) != list(range(num_layers)):
        raise UnsupportedModel(
            type(causal_lm).__name__, f"has {num_layers} layers of which {len(tracer.specs)} use plain attention"
        )
    layers = range(num_layers)
    specs, shapes = tuple(tracer.specs[i] for i in layers), tuple(tracer.shapes[i] for i in layers)
    return TracedAttention(specs, shapes, position_limit(causal_lm))
