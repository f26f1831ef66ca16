"""A batch-invariant model, interpreted on the CPU: a row's bits are the same alone, in any batch and in any chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from decoding.model import linear
from decoding.model.gpu import invariant, products
from decoding.model.gpu.fused import FusedLayer
from decoding.model.gpu.invariant import NotRowExact, RowNorm, make_batch_invariant
from decoding.model.gpu.products import InvariantProduct
from tests.decoding.attention.test_triton import row_exact_product
from tests.decoding.layout import Row
from tests.decoding.model.gpu.test_fused import layers, on_a_gpu, small
from tests.decoding.model.test_model import hidden_states, last_hidden, opened, prompts
from tests.decoding.rounding_error import of_model
from tests.decoding.tiny import tiny


@pytest.fixture(autouse=True)
def _adds_up_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a tensor core does, whatever a row's place."""
    monkeypatch.setattr(np, "matmul", row_exact_product)


@pytest.fixture
def _believes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes products for exact without a trial, which takes the interpreter half a minute a model."""
    monkeypatch.setattr(invariant, "_is_exact", lambda _: True)


@pytest.mark.usefixtures("_believes")
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_row_is_bitwise_the_same_in_any_company_and_in_any_chunks(name: str) -> None:
    model = on_a_gpu(small(name), "gpu_invariant")
    assert all(isinstance(layer, FusedLayer) == (name == "llama") for layer in layers(model))
    (tokens,) = prompts(9)
    whole = hidden_states(model, tokens, 9)
    assert torch.equal(hidden_states(model, tokens, 4), whole)
    book, row, others = opened(model), Row(tokens), [Row(each) for each in prompts(3, 5, seed=1)]
    first = model.forward(book.batch([(others[0], 2), (row, 8), (others[1], 4)])).last[2:10]
    last = model.forward(book.batch([(others[0], 1), (others[1], 1), (row, 1)])).last[-1:]
    assert torch.equal(torch.cat([first, last]), whole)


@pytest.mark.usefixtures("_believes")
def test_it_gives_what_transformers_gives() -> None:
    (tokens,) = prompts(9)
    read = last_hidden(tokens)
    with torch.no_grad():
        expected = read(small("gemma2").base_model)
    error = 2 * of_model(small("gemma2").base_model, read)
    found = hidden_states(on_a_gpu(small("gemma2"), "gpu_invariant"), tokens, 9)
    torch.testing.assert_close(found, expected, rtol=0, atol=error)


@pytest.mark.usefixtures("_believes")
def test_every_norm_of_the_family_runs_row_by_row() -> None:
    model = small("llama")
    make_batch_invariant(model)
    assert isinstance(model.model.norm, RowNorm)


def test_a_mixture_whose_experts_multiply_by_themselves_is_refused() -> None:
    with pytest.raises(NotRowExact, match="in its own code"):
        make_batch_invariant(tiny("mixtral"))


def test_a_product_that_depends_on_the_place_or_on_who_walks_its_spans_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(300, 150)
    monkeypatch.setattr(products, "ENOUGH_PROGRAMS", 12)
    monkeypatch.setattr(linear, "PROBED_ROWS", (1, 7, 64))
    invariant.tested_product()(weight, None)
    own = InvariantProduct.of
    for changed_from in (7, 65):  # rows: within a tile; where spans have no programs of their own
        monkeypatch.setattr(
            InvariantProduct, "of", lambda self, rows, n=changed_from: own(self, rows) + (len(rows[0]) >= n)
        )
        with pytest.raises(NotRowExact, match="place"):
            invariant.tested_product()(weight, None)
