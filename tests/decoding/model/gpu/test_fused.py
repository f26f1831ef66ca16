"""Decoder layers fused for a GPU, interpreted on the CPU: which are recognised, what they give, what they launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from decoding.attention.interface import PagedAttention
from decoding.attention.triton import TritonAttention
from decoding.model import loading
from decoding.model.gpu.fused import FusedLayer
from decoding.model.loading import wrap
from decoding.model.model import Model
from decoding.model.prepare import RECIPES
from tests.decoding.kernels.launches import launches
from tests.decoding.layout import Row
from tests.decoding.model.test_fused import clipped, scaled_by_hidden_position, scaled_by_position
from tests.decoding.model.test_model import hidden_states, last_hidden, opened, prompts
from tests.decoding.rounding_error import of_model
from tests.decoding.tiny import tiny


def on_a_gpu(causal_lm: Any, recipe: str = "gpu_fast") -> Model:
    """As it would be prepared for a GPU."""

    def attention(shapes, device, dtype) -> PagedAttention:  # type: ignore[no-untyped-def]
        return TritonAttention(shapes, device=device, dtype=dtype, is_uniform=recipe == "gpu_invariant")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "choose", lambda *_args, **_options: RECIPES[recipe])
        return wrap(causal_lm, attention=attention)


def small(name: str, **overrides: Any) -> Any:
    """The interpreter takes seconds for a layer."""
    return tiny(name, num_hidden_layers=1, **overrides)


def layers(model: Model) -> list[nn.Module]:
    return list(next(child for child in model.body.base.children() if isinstance(child, nn.ModuleList)))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama", {}),
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("qwen2", {"max_window_layers": 0}),
        ("qwen3", {}),
        ("phi3", {}),
        ("smollm3", {"no_rope_layers": [0]}),
    ],
)
def test_a_fused_layer_of_the_family_gives_what_transformers_gives(name: str, overrides: dict[str, Any]) -> None:
    (tokens,) = prompts(12)
    model, read = on_a_gpu(small(name, **overrides)), last_hidden(tokens)
    assert [type(layer) for layer in layers(model)] == [FusedLayer]
    with torch.no_grad():
        expected = read(small(name, **overrides).base_model)
    error = 2 * of_model(small(name, **overrides).base_model, read)
    torch.testing.assert_close(hidden_states(model, tokens, 11), expected, rtol=0, atol=error)


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "granite"])
def test_layers_of_other_families_stay(name: str) -> None:
    assert [type(layer) for layer in layers(on_a_gpu(small(name)))] != [FusedLayer]


@pytest.mark.parametrize("change", [scaled_by_position, scaled_by_hidden_position, clipped])
def test_a_layer_of_the_right_parts_put_together_otherwise_stays(change: Callable[[Any], None]) -> None:
    model = small("llama", initializer_range=0.1)
    change(model.model.layers[0])
    assert [type(layer) for layer in layers(on_a_gpu(model))] != [FusedLayer]


def test_in_sixteen_bits_a_halved_part_is_noticed() -> None:
    same, halved = (small("llama", initializer_range=0.1).bfloat16() for _ in range(2))
    own = halved.model.layers[0].mlp.forward
    halved.model.layers[0].mlp.forward = lambda x: own(x) * 0.5
    kinds = [[type(layer) is FusedLayer for layer in layers(on_a_gpu(model))] for model in (same, halved)]
    assert kinds == [[True], [False]]


def test_a_kept_layer_is_what_the_next_one_received() -> None:
    """Adding the last product into its input's memory must not touch what a strategy was given."""
    model, tokens = on_a_gpu(tiny("llama", num_hidden_layers=2)), prompts(9)[0]
    batch = opened(model).batch([(Row(tokens), 9)])
    kept = model.forward(batch, (0, 1)).layers
    with torch.no_grad():
        found = tiny("llama", num_hidden_layers=2)(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(kept[0], found[0][0], rtol=0, atol=0)
    torch.testing.assert_close(kept[1], found[1][0], rtol=0, atol=1e-5)


def test_probed_scores_are_those_of_the_unfused_layer() -> None:
    (tokens,) = prompts(9)
    model = on_a_gpu(small("qwen3"))
    found = model.forward(opened(model).batch([(Row(tokens), 9)], probe_rows=(0,))).probed[0]
    with torch.no_grad():
        weights = small("qwen3")(torch.tensor([tokens]), output_attentions=True).attentions[-1][0, :, -1]
    torch.testing.assert_close(found.softmax(dim=-1), weights, rtol=1e-4, atol=1e-6)


def launched_by_a_layer(model: Model, positions: int, tokens: int) -> Counter[str]:
    """One row of so many positions, of which the last are fed."""
    book, row, (layer,) = opened(model), Row(prompts(positions)[0]), layers(model)
    if positions > tokens:
        book.batch([(row, positions - tokens)])
    plan = model.attention.plan(book.batch([(row, tokens)]))
    body = cast(Any, model.body)
    x = torch.zeros(1, tokens, model.info.hidden_size).bfloat16()
    angles = torch.zeros(1, tokens, body.traced.shapes[0].head_dim).bfloat16()
    bound = body.traced.bind(model.attention, plan)
    with launches() as counts:
        layer(x, position_embeddings=(angles, angles), polydecode=bound)
    return counts


def test_a_layer_launches_at_most_eleven_kernels() -> None:
    """Two norms, four products, one that rotates and writes, attention in one or two, one activation."""
    model = on_a_gpu(small("qwen3", head_dim=8).bfloat16())
    decode = launched_by_a_layer(model, 300, 1)
    assert decode.pop("find_common") == 1, "once a forward, in its first layer"
    assert decode == {"normalise": 2, "multiply": 4, "place": 1, "attend": 1, "combine": 1, "activate": 1}
    prefill = launched_by_a_layer(model, 20, 20)
    assert prefill.total() <= 9, prefill
    assert prefill["aten::addmm_"] == 1, "the last product adds to what its input was"
