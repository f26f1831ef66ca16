"""Fused decoder layers: which are recognised, and that they are the same in any company and on any threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("numba")

from decoding.attention.pages import LayerShape
from decoding.kernels import cpu as kernels
from decoding.model.fused import FusedLayer
from decoding.model.llama.parts import read_parts
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.layout import PageBook, Row
from tests.decoding.model.test_model import greedy, hidden_states, last_hidden, prompts
from tests.decoding.rounding_error import of_model
from tests.decoding.tiny import CONFIGS, tiny

FUSED = ["llama", "llama-llama3-rope", "llama-yarn-rope", "mistral", "qwen2", "qwen3", "phi3", "smollm3"]


def layers(model: Model) -> list[nn.Module]:
    blocks = next(child for child in model._body.base.children() if isinstance(child, nn.ModuleList))
    return list(blocks)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_of_the_llama_family_are_fused_and_no_others(name: str) -> None:
    fused = [isinstance(layer, FusedLayer) for layer in layers(wrap(tiny(name)))]
    assert fused == [name in FUSED] * 3


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_model_gives_what_the_unfused_one_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = wrap(tiny(name))
    monkeypatch.setattr(kernels, "available", lambda: False)
    plain = wrap(tiny(name))
    assert not isinstance(layers(plain)[0], FusedLayer)
    (tokens,) = prompts(60)
    error = 2 * of_model(tiny(name).base_model, last_hidden(tokens))
    torch.testing.assert_close(hidden_states(fused, tokens, 60), hidden_states(plain, tokens, 60), rtol=0, atol=error)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "mixtral"])
def test_without_compiled_kernels_the_tokens_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = prompts(40, 7)
    compiled = greedy(wrap(tiny(name)), wanted)
    monkeypatch.setattr(kernels, "available", lambda: False)
    assert greedy(wrap(tiny(name)), wanted) == compiled


@pytest.mark.parametrize("name", FUSED)
def test_chunks_and_threads_do_not_change_a_bit(name: str) -> None:
    (tokens,) = prompts(90)
    whole = hidden_states(wrap(tiny(name)), tokens, 90)
    torch.set_num_threads(3)
    model = wrap(tiny(name))
    torch.set_num_threads(1)
    for chunk in (1, 7, 16, 90):
        assert torch.equal(hidden_states(model, tokens, chunk), whole), chunk


def test_a_row_is_bitwise_the_same_in_any_company() -> None:
    model = wrap(tiny("llama").bfloat16().float())  # weights that are kept in bfloat16
    (tokens,) = prompts(90)
    whole = hidden_states(model, tokens, 90)
    for company in (2, 5, 17, 70):
        model.attention.allocate(600)
        book, row = PageBook(600, model.attention.page_size, company), Row(tokens)
        others = [Row(each) for each in prompts(*range(3, company + 2), seed=company)]
        model.forward(book.batch([*((other, len(other.tokens) - 1) for other in others), (row, 80)]))
        last = model.forward(book.batch([*((other, 1) for other in others), (row, 10)])).last
        assert torch.equal(last[-10:], whole[-10:]), company


def test_probed_scores_are_those_of_the_unfused_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    (tokens,) = prompts(20)

    def probed(model: Model) -> torch.Tensor:
        model.attention.allocate(200)
        batch = PageBook(200, model.attention.page_size, 0).batch([(Row(tokens), 20)], probe_rows=(0,))
        return model.forward(batch).probed[0]

    fused = probed(wrap(tiny("llama")))
    monkeypatch.setattr(kernels, "available", lambda: False)

    def read(model: Any) -> torch.Tensor:  # a score is off by what the logarithm of its weight is
        return model(input_ids=torch.tensor([tokens]), output_attentions=True).attentions[-1][0, :, -1].log()  # type: ignore[no-any-return]

    error = 2 * of_model(tiny("llama"), read)
    torch.testing.assert_close(fused, probed(wrap(tiny("llama"))), rtol=0, atol=error)


def test_a_layer_with_one_more_part_is_not_taken_for_one_of_the_family() -> None:
    layer = tiny("llama").model.layers[0]
    assert read_parts(layer) is not None
    layer.extra = nn.Linear(2, 2)
    assert read_parts(layer) is None


def test_a_layer_of_the_right_parts_put_together_otherwise_stays() -> None:
    model = tiny("llama")
    layer = model.model.layers[1]
    own = layer.mlp.forward
    layer.mlp.forward = lambda x: own(x) * 0.5
    kinds = [isinstance(each, FusedLayer) for each in layers(wrap(model))]
    assert kinds == [True, False, True]


def scaled_by_position(layer: nn.Module) -> None:
    """As models do that were stretched beyond the context they were trained with."""
    own = layer.self_attn.forward

    def forward(*args, position_ids, **kwargs):  # type: ignore[no-untyped-def]
        out, weights = own(*args, **kwargs)
        return out * (1 + (position_ids // 64)[..., None]), weights

    layer.self_attn.forward = forward


def scaled_by_hidden_position(layer: nn.Module) -> None:
    """The same, without a name in its signature that says so."""
    own = layer.self_attn.forward

    def forward(*args, **kwargs):  # type: ignore[no-untyped-def]
        out, weights = own(*args, **kwargs)
        return out * (1 + (kwargs["position_ids"] // 64)[..., None]), weights

    layer.self_attn.forward = forward


def clipped(layer: nn.Module) -> None:
    """Products that no ordinary input makes so large."""
    layer.self_attn.q_proj.register_forward_hook(lambda _module, _args, out: out.clamp(-4.0, 4.0))


@pytest.mark.parametrize("change", [scaled_by_position, scaled_by_hidden_position, clipped])
def test_a_layer_that_differs_at_far_positions_or_large_products_alone_stays(change: Callable[[Any], None]) -> None:
    model = tiny("llama", initializer_range=0.1)
    change(model.model.layers[1])
    kinds = [isinstance(each, FusedLayer) for each in layers(wrap(model))]
    assert kinds == [True, False, True]


def test_a_layer_of_other_widths_than_its_attention_stays() -> None:
    shape = LayerShape(6, 2, 8, 8)
    parts = read_parts(tiny("llama").model.layers[0])
    assert parts is not None
    assert parts.fits(shape)
    assert not parts.fits(LayerShape(6, 2, 16, 16))
    assert not parts.fits(LayerShape(6, 3, 8, 8))


def test_a_fused_layer_refuses_what_it_would_run_past_the_end_of() -> None:
    model = wrap(tiny("llama"))
    model.attention.allocate(200)
    plan = model.attention.plan(PageBook(200, model.attention.page_size, 0).batch([(Row(prompts(20)[0]), 20)]))
    stack = layers(model)[0]._stack
    for x in (torch.zeros(1, 20, 47), torch.zeros(1, 19, 48), torch.zeros(1, 20, 48, dtype=torch.float64)):
        with pytest.raises(ValueError, match="a layer of"):
            stack.run(0, 1, x, None, plan)
    with pytest.raises(ValueError, match="angles"):
        stack.run(0, 1, torch.zeros(1, 20, 48), (torch.zeros(1, 20, 10), torch.zeros(1, 20, 10)), plan)
