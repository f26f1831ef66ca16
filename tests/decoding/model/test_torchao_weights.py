"""int4 by torchao: which linears, which configuration, and what is refused. The products need a GPU."""

from __future__ import annotations

import pytest
import torch

from decoding.model.quantize import QuantizeUnsupported
from decoding.model.torchao_weights import config_of, merged_linears
from tests.decoding.tiny import tiny


def test_every_linear_but_the_output_matrix_is_taken_and_merged_ones_once() -> None:
    causal_lm = tiny("llama", tie_word_embeddings=True)
    expected = causal_lm(torch.arange(9)[None]).logits
    linears = merged_linears(causal_lm, "int4")
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


class TestWithTorchao:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("torchao")

    def test_int4_has_the_largest_groups_that_fit_every_weight(self) -> None:
        from torchao.quantization import Int4WeightOnlyConfig  # noqa: PLC0415

        config = config_of("int4", [torch.empty(8, 4096), torch.empty(8, 576)])
        assert type(config) is Int4WeightOnlyConfig
        assert (config.group_size, config.int4_packing_format) == (64, "tile_packed_to_4d")
        with pytest.raises(QuantizeUnsupported, match="multiples of 32"):
            config_of("int4", [torch.empty(8, 48)])
