"""How far apart float32 results may be that differ in nothing but rounding, from arithmetic.

A tolerance that was read off one machine holds on that machine.
"""

from __future__ import annotations

import math

import torch

EPS = torch.finfo(torch.float32).eps


def ulp(magnitude: float) -> float:
    """From a float32 of that magnitude to the next: one rounding is off by half of it at most."""
    return 2.0 ** (math.floor(math.log2(magnitude)) - 23)


def of_sum(terms: int) -> float:
    """Relative, of positive numbers: each addition is off by EPS / 2 at most, in either direction, so they add up like
    a walk; four times its root mean square.
    """
    return 4 * EPS / 2 * math.sqrt(terms)


def of_log_softmax(largest: float, vocab: int) -> float:
    """x - m - ln d, each operation rounded at the largest magnitude; what ln makes of an error of d is relative to d,
    whose terms e^(x - m) come with 2 ulps each.
    """
    return 2 * ulp(largest) / 2 + ulp(math.log(vocab)) / 2 + of_sum(vocab) + 2 * EPS
