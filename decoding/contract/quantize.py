"""Which weights can be quantised on which kind of device, and what they are computed in there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Quantize = Literal["none", "int8", "fp8", "int4"]
Rounding = Quantize | Literal["bfloat16"]
"""What is done to weights before they are packed: quantise them, or keep the sixteen bits they were loaded in."""

QUANTIZED_ON: Mapping[str, tuple[Quantize, ...]] = {"cpu": ("int8", "int4"), "cuda": ("fp8", "int4")}
COMPUTES_IN: Mapping[str, str] = {"cpu": "float32", "cuda": "bfloat16"}
