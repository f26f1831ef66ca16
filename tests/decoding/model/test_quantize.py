"""A quantised model: exact against itself in any chunks and company, close to the model it was rounded from."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from decoding.contract.quantize import Quantize
from decoding.kernels import cpu as kernels
from decoding.kernels.cpu.rounding import LARGEST_INPUT
from decoding.model.fused import FusedLayer
from decoding.model.loading import load, wrap
from decoding.model.quantize import QuantizeUnsupported, round_linears
from loadtest.engine.perplexity import perplexity
from tests.decoding.layout import PageBook, Row
from tests.decoding.model.test_fused import FUSED, layers
from tests.decoding.model.test_model import hidden_states, last_hidden, prompts
from tests.decoding.rounding_error import of_model, of_row
from tests.decoding.tiny import WHOLE_GROUPS, tiny


def of_whole_inputs(x: torch.Tensor) -> torch.Tensor:
    """Rounded to whole numbers of a step, a row is off by a root mean square of step / sqrt(12): four times that. The
    step of a row's largest number is the largest of its groups.
    """
    step = x.abs().amax(dim=-1, keepdim=True) / LARGEST_INPUT
    return of_row(x) + 4 * step / math.sqrt(12) / x.square().mean(dim=-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("name", "quantize", "sizes"),
    [(name, "int8", {}) for name in ("llama", "qwen3", "phi3", "gpt2", "gemma2", "olmo2")]
    + [("llama", "int4", WHOLE_GROUPS), ("phi3", "int4", WHOLE_GROUPS), ("gpt2", "int4", {})],
)
def test_chunks_do_not_change_a_bit_and_the_rounded_float_model_agrees(
    name: str, quantize: Quantize, sizes: dict[str, int]
) -> None:
    model = wrap(tiny(name, **sizes), quantize=quantize)
    assert isinstance(layers(model)[0], FusedLayer) == (name in FUSED)
    (tokens,) = prompts(60)
    whole = hidden_states(model, tokens, 60)
    for chunk in (1, 7, 16):
        assert torch.equal(hidden_states(model, tokens, chunk), whole), chunk
    rounded = tiny(name, **sizes)
    round_linears(rounded, quantize)
    rounded_alone = copy.deepcopy(rounded)
    expected = hidden_states(wrap(rounded), tokens, 60)
    unrounded = hidden_states(wrap(tiny(name, **sizes)), tokens, 60)
    error = of_model(rounded_alone.base_model, last_hidden(tokens), of_whole_inputs)
    assert (whole - expected).abs().max() <= error
    assert not torch.equal(expected, unrounded), "nothing was rounded"


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_logits_are_bitwise_the_same_in_any_company(quantize: Quantize) -> None:
    model = wrap(tiny("llama"), quantize=quantize)
    (tokens,) = prompts(90)
    whole = model.head(hidden_states(model, tokens, 90))
    for company in (2, 5, 17, 70):
        model.attention.allocate(600)
        book, row = PageBook(600, model.attention.page_size, company), Row(tokens)
        others = [Row(each) for each in prompts(*range(3, company + 2), seed=company)]
        model.forward(book.batch([*((other, len(other.tokens) - 1) for other in others), (row, 80)]))
        last = model.forward(book.batch([*((other, 1) for other in others), (row, 10)])).last
        assert torch.equal(model.head(last)[-10:], whole[-10:]), company


def test_a_head_that_shares_the_embeddings_weight_is_rounded_alone() -> None:
    causal_lm = tiny("llama", tie_word_embeddings=True)
    embedding = causal_lm.get_input_embeddings().weight.clone()
    round_linears(causal_lm, "int8")
    assert torch.equal(causal_lm.get_input_embeddings().weight, embedding)
    assert not torch.equal(causal_lm.get_output_embeddings().weight, embedding)


def test_the_head_of_a_model_in_four_bits_has_eight() -> None:
    four, eight = tiny("llama"), tiny("llama")
    round_linears(four, "int4")
    round_linears(eight, "int8")
    assert torch.equal(four.lm_head.weight, eight.lm_head.weight)
    assert not torch.equal(four.model.layers[0].mlp.up_proj.weight, eight.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_a_model_that_multiplies_outside_linears_is_refused(name: str) -> None:
    with pytest.raises(QuantizeUnsupported, match="outside linears"):
        wrap(tiny(name), quantize="int8")


def test_without_compiled_kernels_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(kernels, "available", lambda: False)
    with pytest.raises(QuantizeUnsupported, match="needs compiled kernels"):
        load(str(tmp_path), device="cpu", dtype="auto", quantize="int8")


def test_half_precision_is_refused(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(QuantizeUnsupported, match="not in bfloat16"):
        load(str(tmp_path), device="cpu", dtype="bfloat16", quantize="int8")


def test_a_quantised_model_computes_in_float32_whatever_its_checkpoint_is_in(tmp_path: Path) -> None:
    tiny("llama").bfloat16().save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu", dtype="auto", quantize="int8").info.dtype == torch.float32


def test_perplexity_is_that_of_the_models_own_loss() -> None:
    ids = np.array(prompts(200)[0])

    def loss(model: Any) -> torch.Tensor:
        return model(torch.from_numpy(ids)[None], labels=torch.from_numpy(ids)[None]).loss  # type: ignore[no-any-return]

    with torch.inference_mode():
        expected = float(loss(tiny("llama")).exp())
    error = 2 * of_model(tiny("llama"), loss)  # of the perplexity, relatively
    assert perplexity(wrap(tiny("llama")), ids) == pytest.approx(expected, rel=error)
