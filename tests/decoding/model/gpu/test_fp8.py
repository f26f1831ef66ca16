"""Products in e4m3, on a CPU, where torch has them too: what is rounded, and what layers hand to products."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

import triton.language as tl
from triton.runtime import interpreter

from decoding.model import quantize
from decoding.model.gpu import fp8
from decoding.model.gpu.fp8 import Fp8Product, rounded
from decoding.model.gpu.fused import FusedLayer
from decoding.model.gpu.steps import activated, added_and_normalised, normalised, quantised
from decoding.model.llama.parts import Norm
from decoding.model.loading import load
from decoding.model.prepare import choose
from decoding.model.quantize import QuantizeUnsupported, check_machine
from tests.decoding.gguf.gguf_files import sized
from tests.decoding.model.gpu.test_fused import launched_by_a_layer, layers, on_a_gpu
from tests.decoding.model.test_model import hidden_states
from tests.decoding.rounding_error import of_each
from tests.decoding.tiny import tiny

E4M3 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def _rounds_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter loses the carry where a number is rounded up to a power of two: 127 becomes 64."""
    own = interpreter._convert_float

    def convert(data: np.ndarray, given: Any, wanted: Any, mode: Any) -> np.ndarray:
        if (given, wanted) != (tl.float32, tl.float8e4nv):
            return own(data, given, wanted, mode)
        values = torch.from_numpy(np.ascontiguousarray(data).view(np.float32))
        return values.to(E4M3).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def emulated(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [T, width] in e4m3 by torch."""
    scales = x.float().abs().amax(dim=1).clamp(min=1e-12) / 448
    return (x.float() / scales.unsqueeze(1)).to(E4M3), scales


def test_rows_are_rounded_as_torch_rounds_them() -> None:
    x = random(5, 48)
    x[3] = 0
    found, (values, scales) = quantised(x), emulated(x)
    assert torch.equal(found[0].float(), values.float())
    assert found[1] is not None
    torch.testing.assert_close(found[1], scales, rtol=1e-6, atol=0)


def widened(rows: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
    values, scales = rows
    assert values.dtype == E4M3
    assert scales is not None
    return values.float() * scales.unsqueeze(1)


def test_norms_and_activations_leave_their_results_in_eight_bits() -> None:
    x, delta, norm = random(3, 48), random(3, 48, seed=1), Norm(torch.rand(48) + 0.5, 1e-5)
    total, of_sum = added_and_normalised(x, delta, norm, quantises=True)
    both = (x.float() + delta.float()).bfloat16()
    assert (total.float() - both.float()).abs().max() <= 2**-7 * both.abs().max()  # the interpreter cuts off
    gate_up = random(3, 96, seed=2)
    gate, up = gate_up.float().chunk(2, dim=1)
    for found, exact in (
        (normalised(x, norm, quantises=True), F.rms_norm(x.float(), (48,), norm.weight, norm.eps)),
        (of_sum, F.rms_norm(total.float(), (48,), norm.weight, norm.eps)),
        (activated(gate_up, quantises=True), F.silu(gate) * up),
    ):
        smallest = exact.abs().amax(dim=1, keepdim=True) / 448 * 2**-9  # e4m3's
        assert ((widened(found) - exact).abs() <= 2**-4 * exact.abs() + smallest).all()


def test_a_rounded_weight_is_packed_without_further_loss() -> None:
    weight = random(64, 48) * torch.logspace(-4, 2, 64).unsqueeze(1).bfloat16()
    weight[5] = 0
    weight[6, :2] = torch.tensor([448.0, 447.0])
    values, scales = rounded(weight)
    once = (values.float() * scales.unsqueeze(1)).bfloat16()
    assert torch.equal(once.float(), values.float() * scales.unsqueeze(1)), "sixteen bits hold it"
    again, same = rounded(once)
    assert torch.equal(again.float() * same.unsqueeze(1), once.float())
    assert torch.equal(scales.log2(), scales.log2().round())
    assert ((once.float() - weight.float()).abs() <= 2**-4 * weight.float().abs() + 2**-10 * scales.unsqueeze(1)).all()


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_is_that_of_the_rounded_numbers(has_bias: bool) -> None:
    weight, x, bias = random(32, 48), random(5, 48, seed=1), random(32, seed=2) if has_bias else None
    product, (values, scales) = Fp8Product(weight, bias), emulated(x)
    own, own_scales = rounded(weight)
    exact = (values.double() * scales.unsqueeze(1)) @ (own.double() * own_scales.unsqueeze(1)).T
    exact = exact if bias is None else exact + bias.double()
    for found in (product(x), product.of(quantised(x))):
        torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2**-7 * float(exact.abs().max()))
    held = random(5, 32, seed=3)
    added = product.add_to(held.clone(), (x, None))
    torch.testing.assert_close(added, held + product(x), rtol=0, atol=0)
    assert product.weight_bytes == 32 * 48 + 4 * 32


def test_an_fp8_model_is_near_the_one_it_was_made_of_and_a_row_of_zeros_stays_finite() -> None:
    causal_lm = sized("llama", num_hidden_layers=1).bfloat16()
    causal_lm.get_input_embeddings().weight.data[0] = 0
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        expected = causal_lm(ids).logits.float()
        model = on_a_gpu(causal_lm, "gpu_fp8")
        found = model.head(hidden_states(model, ids[0].tolist(), 9))
    assert [type(layer) for layer in layers(model)] == [FusedLayer]
    assert found.isfinite().all()
    # weights and inputs are each off by a root mean square of at most eps / sqrt(12)
    once = torch.finfo(E4M3).eps / math.sqrt(12)
    error = of_each(sized("llama", num_hidden_layers=1), lambda lm: lm(ids).logits[0], lambda _: math.sqrt(2) * once)
    difference = (found - expected[0]).norm()
    assert torch.finfo(torch.bfloat16).eps * expected.norm() < difference <= error.norm()
    assert type(model.output_matrix) is torch.nn.Linear
    launched = launched_by_a_layer(model, 20, 20)
    assert launched.total() == 11, launched
    assert (launched["aten::_scaled_mm"], launched["quantise"]) == (4, 1)  # attention alone leaves sixteen bits


def test_a_layer_that_is_not_of_the_family_has_its_products_in_fp8_all_the_same() -> None:
    model = on_a_gpu(sized("gemma2", num_hidden_layers=1).bfloat16(), "gpu_fp8")
    assert sum(type(module) is Fp8Product for module in model.body.modules()) == 2  # o and down
    assert model.body.base.layers[0].self_attn.q_proj._merged.product.quantises


def test_other_sides_are_refused_by_name() -> None:
    with pytest.raises(QuantizeUnsupported, match="multiples of 16"):
        fp8.round_linears(sized("llama", intermediate_size=72).bfloat16())


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_a_model_that_multiplies_outside_linears_is_refused(name: str) -> None:
    causal_lm = tiny(name)
    with pytest.raises(QuantizeUnsupported, match=r"quantize = fp8 cannot hold .* outside linears"):
        choose(causal_lm, "fp8", is_batch_invariant=False).change_weights(causal_lm)


def test_without_a_gpu_it_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    tiny("llama").config.save_pretrained(tmp_path)
    with pytest.raises(QuantizeUnsupported, match="quantize = fp8 is for a GPU only"):
        load(str(tmp_path), device="cpu", dtype="auto", quantize="fp8")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float16"}, "computes in bfloat16, not in float16"),
        ({"is_batch_invariant": True}, "cannot be batch invariant"),
        ({"has_triton": False}, "needs the package triton"),
        ({"quantize": "int4", "is_installed": False}, r"needs torchao: pip install polydecode\[torchao\]"),
        ({"capability": (8, 6)}, r"compute capability 8\.9 or more"),
        ({"quantize": "int4", "capability": (8, 6)}, None),
        ({}, None),
    ],
)
def test_each_thing_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str | None
) -> None:
    given: dict[str, Any] = {
        "quantize": "fp8", "dtype": "auto", "is_batch_invariant": False, "is_installed": True, "has_triton": True,
        "capability": (9, 0),
    } | changes  # fmt: skip
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if given["is_installed"] else None)
    monkeypatch.setattr(quantize, "has_triton", lambda: given["has_triton"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: given["capability"])
    asked: tuple[Any, ...] = (given["quantize"], torch.device("cuda"), given["dtype"])
    if reason is None:
        check_machine(*asked, is_batch_invariant=given["is_batch_invariant"])
    else:
        with pytest.raises(QuantizeUnsupported, match=reason):
            check_machine(*asked, is_batch_invariant=given["is_batch_invariant"])
