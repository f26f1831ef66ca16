"""fp8 and int4 by torchao: which linears, which configuration, and what is refused. The products need a GPU."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.model.loading import load, wrap
from decoding.model.quantize import QuantizeUnsupported, check_machine
from decoding.model.torchao_weights import config_of, merged_linears
from tests.decoding.gguf.gguf_files import sized
from tests.decoding.model.test_model import hidden_states
from tests.decoding.rounding_error import of_each
from tests.decoding.tiny import tiny

CUDA = torch.device("cuda")


def num_bytes_of_linears(causal_lm: torch.nn.Module) -> int:
    return sum(module.weight.nbytes for module in causal_lm.modules() if isinstance(module, torch.nn.Linear))


def test_every_linear_but_the_output_matrix_is_taken_and_merged_ones_once() -> None:
    causal_lm = tiny("llama", tie_word_embeddings=True)
    expected = causal_lm(torch.arange(9)[None]).logits
    linears = merged_linears(causal_lm, "fp8")
    shapes = sorted(tuple(linear.weight.shape) for linear in linears)
    assert shapes == sorted([(80, 48), (48, 48), (160, 48), (48, 80)] * 3)  # q|k|v, o, gate|up, down of three layers
    assert causal_lm.get_output_embeddings() not in linears
    for linear in linears:  # those that are taken are those that compute
        linear.weight = torch.nn.Parameter(torch.zeros_like(linear.weight), requires_grad=False)
    assert not torch.allclose(causal_lm(torch.arange(9)[None]).logits, expected)


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_a_model_that_multiplies_outside_linears_is_refused(name: str) -> None:
    with pytest.raises(QuantizeUnsupported, match=r"quantize = int4 cannot hold .* outside linears"):
        merged_linears(tiny(name), "int4")


def test_without_a_gpu_it_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    tiny("llama").config.save_pretrained(tmp_path)
    with pytest.raises(QuantizeUnsupported, match="quantize = fp8 is for a GPU only"):
        load(str(tmp_path), device="cpu", dtype="auto", quantize="fp8")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float16"}, "computes in bfloat16, not in float16"),
        ({"is_batch_invariant": True}, "cannot be batch invariant"),
        ({"is_installed": False}, r"needs torchao: pip install polydecode\[torchao\]"),
        ({"capability": (8, 6)}, r"compute capability 8\.9 or more"),
        ({}, None),
    ],
)
def test_each_thing_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str | None
) -> None:
    given: dict[str, Any] = {
        "dtype": "auto",
        "is_batch_invariant": False,
        "is_installed": True,
        "capability": (9, 0),
    } | changes
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if given["is_installed"] else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: given["capability"])
    if reason is None:
        check_machine("fp8", CUDA, given["dtype"], is_batch_invariant=given["is_batch_invariant"])
    else:
        with pytest.raises(QuantizeUnsupported, match=reason):
            check_machine("fp8", CUDA, given["dtype"], is_batch_invariant=given["is_batch_invariant"])


class TestWithTorchao:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("torchao")

    def test_fp8_has_a_scale_for_each_row_of_weights_and_inputs(self) -> None:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow  # noqa: PLC0415

        config = config_of("fp8", [torch.ones(32, 48)])
        assert type(config) is Float8DynamicActivationFloat8WeightConfig
        assert config.granularity == [PerRow(), PerRow()]
        with pytest.raises(QuantizeUnsupported, match="multiples of 16"):
            config_of("fp8", [torch.ones(32, 48), torch.ones(32, 40)])
        with pytest.raises(QuantizeUnsupported, match="row of zeros"):
            config_of("fp8", [torch.eye(32)[:, :16]])

    def test_an_fp8_model_is_near_the_one_it_was_made_of_and_a_row_of_zeros_stays_finite(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a CPU, where torch has the product but torchao refuses it."""
        monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _: None)
        causal_lm = sized("llama").bfloat16()
        causal_lm.get_input_embeddings().weight.data[0] = 0
        ids = torch.arange(40)[None]
        with torch.inference_mode():
            expected = causal_lm(ids).logits.float()
            model = wrap(causal_lm, quantize="fp8")
            found = model.head(hidden_states(model, ids[0].tolist(), 40))
        assert found.isfinite().all()
        # weights and inputs are each off by a root mean square of at most eps / sqrt(12)
        once = torch.finfo(torch.float8_e4m3fn).eps / math.sqrt(12)
        error = of_each(sized("llama"), lambda lm: lm(ids).logits[0], lambda _: math.sqrt(2) * once)
        difference = (found - expected[0]).norm()
        assert torch.finfo(torch.bfloat16).eps * expected.norm() < difference <= error.norm()
        assert not model.is_compiled
        assert model.weight_bytes < 0.65 * num_bytes_of_linears(sized("llama").bfloat16())

    def test_int4_has_the_largest_groups_that_fit_every_weight(self) -> None:
        from torchao.quantization import Int4WeightOnlyConfig  # noqa: PLC0415

        config = config_of("int4", [torch.empty(8, 4096), torch.empty(8, 576)])
        assert type(config) is Int4WeightOnlyConfig
        assert (config.group_size, config.int4_packing_format) == (64, "tile_packed_to_4d")
        with pytest.raises(QuantizeUnsupported, match="multiples of 32"):
            config_of("int4", [torch.empty(8, 48)])
