"""Weights of linears in int4 on a GPU, by torchao (the extra `torchao`): which linears, which configuration.

Weights alone, a scale and a zero for each group of inputs, in the layout of torch's own tinygemm product. The output
matrix stays as it is: its errors go straight into the draw, and where it is the embedding too both would have to be
held. `graphs.py` records these products as any others, and does without where one cannot be recorded. Owns no
arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from decoding.contract.quantize import Quantize
from decoding.model.quantize import QuantizeUnsupported, check_model
from decoding.model.replace_modules import PlainLinear, bare_products, make_fast

GROUP_SIZES = (128, 64, 32)


def quantise_linears(causal_lm: Any, quantize: Quantize) -> None:
    """Make the model fast, and give every linear but the output matrix its quantised weight.

    Raises QuantizeUnsupported where not all of them can have it.
    """
    from torchao.quantization import quantize_  # noqa: PLC0415 - an optional extra

    linears = merged_linears(causal_lm, quantize)
    config = config_of(quantize, [linear.weight for linear in linears])
    for linear in linears:
        quantize_(linear, config, filter_fn=lambda *_: True)
        if type(linear.weight.data) is torch.Tensor:
            raise QuantizeUnsupported(quantize, f"was not applied to a linear of {tuple(linear.weight.shape)}")


def merged_linears(causal_lm: Any, quantize: Quantize) -> list[Any]:
    """Those to be quantised, once the model is fast."""
    check_model(quantize, type(causal_lm).__name__, list(bare_products(causal_lm, known=(nn.Embedding, nn.Linear))))
    merged: list[Any] = []

    def build(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:  # [N, K], [N]
        linear = PlainLinear(weight, bias)
        merged.append(linear)
        return linear

    make_fast(causal_lm, build)
    head = causal_lm.get_output_embeddings()
    return merged + [m for m in causal_lm.modules() if type(m) is nn.Linear and m is not head]


def config_of(quantize: Quantize, weights: list[torch.Tensor]) -> Any:  # [N, K] each
    """torchao's configuration that takes all of the weights: it would pass over others without a word."""
    from torchao import quantization  # noqa: PLC0415
    from torchao.quantization.quantize_.workflows import Int4PackingFormat  # noqa: PLC0415

    group = next((size for size in GROUP_SIZES if not any(weight.shape[1] % size for weight in weights)), None)
    if group is None:
        raise QuantizeUnsupported(quantize, f"needs linears whose inputs are multiples of {GROUP_SIZES[-1]}")
    return quantization.Int4WeightOnlyConfig(
        group_size=group, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D, set_inductor_config=False
    )
