"""Weights of linears in fp8 or int4 on a GPU, by torchao (the extra `torchao`): which linears, which configuration.

fp8: weights and inputs as e4m3 with a scale for each row of both. int4: weights alone, a scale and a zero for each
group of inputs, in the layout of torch's own tinygemm product. The output matrix stays as it is: its errors go straight
into the draw, and where it is the embedding too both would have to be held. `graphs.py` records these products as any
others, and does without where one cannot be recorded. Owns no arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from decoding.contract.quantize import Quantize
from decoding.model.quantize import QuantizeUnsupported
from decoding.model.replace_modules import PlainLinear, bare_products, make_fast

GROUP_SIZES = (128, 64, 32)
FP8_MULTIPLE = 16  # of both sides, or torch has no product
SMALLEST_INPUT = 1e-12  # a row of zeros has a scale too: 0 / 0 would make its results NaN


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
    bare = next(bare_products(causal_lm, known=(nn.Embedding, nn.Linear)), None)
    if bare is not None:
        architecture = type(causal_lm).__name__
        raise QuantizeUnsupported(
            quantize, f"cannot hold {architecture}: it multiplies by weights outside linears ({bare})"
        )
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
    from torchao.quantization.quantize_.common import KernelPreference  # noqa: PLC0415
    from torchao.quantization.quantize_.workflows import Int4PackingFormat  # noqa: PLC0415

    if quantize == "fp8":
        if any(size % FP8_MULTIPLE for weight in weights for size in weight.shape):
            raise QuantizeUnsupported(quantize, f"needs linears whose sides are multiples of {FP8_MULTIPLE}")
        if not all(weight.any(1).all() for weight in weights):
            raise QuantizeUnsupported(quantize, "cannot hold linears that have a row of zeros")
        return quantization.Float8DynamicActivationFloat8WeightConfig(
            granularity=quantization.PerRow(),
            activation_value_lb=SMALLEST_INPUT,
            kernel_preference=KernelPreference.TORCH,
            set_inductor_config=False,
        )
    group = next((size for size in GROUP_SIZES if not any(weight.shape[1] % size for weight in weights)), None)
    if group is None:
        raise QuantizeUnsupported(quantize, f"needs linears whose inputs are multiples of {GROUP_SIZES[-1]}")
    return quantization.Int4WeightOnlyConfig(
        group_size=group, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D, set_inductor_config=False
    )
