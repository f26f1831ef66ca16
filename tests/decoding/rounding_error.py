"""How far apart results may be that differ in nothing but rounding, from arithmetic.

A tolerance that was read off one machine holds on that machine. All are for float32 unless they are told otherwise, and
of one result against the exact one: two that are both rounded may be twice as far apart.
"""

from __future__ import annotations

import copy
import math

import torch
from torch.nn import functional as F

EPS = torch.finfo(torch.float32).eps


def ulp(magnitude: float) -> float:
    """From a float32 of that magnitude to the next: one rounding is off by half of it at most."""
    return 2.0 ** (math.floor(math.log2(magnitude)) - 23)


def of_sum(terms: int, eps: float = EPS) -> float:
    """Relative, of positive numbers: each addition is off by eps / 2 at most, in either direction, so they add up like
    a walk; four times its root mean square.
    """
    return 4 * eps / 2 * math.sqrt(terms)


def of_log_softmax(largest: float, vocab: int) -> float:
    """x - m - ln d, each operation rounded at the largest magnitude; what ln makes of an error of d is relative to d,
    whose terms e^(x - m) come with 2 ulps each.
    """
    return 2 * ulp(largest) / 2 + ulp(math.log(vocab)) / 2 + of_sum(vocab) + 2 * EPS


def of_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Of x @ weight.T + bias, each element's own: as of a sum of their magnitudes, for which signs are no help."""
    return of_sum(weight.shape[1] + 1) * F.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())


def of_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> float:
    """Of all heads' outputs, [heads, length, dim] each. A weight is off, relatively, by what its score is off and by
    exp's and the sum's error; so is their total; the output's sum rounds once more.
    """
    magnitudes = query.abs() @ key.abs().repeat_interleave(len(query) // len(key), 0).transpose(1, 2)
    score = of_sum(query.shape[-1] + 2) * scaling * float(magnitudes.max())
    return (2 * (score + 2 * EPS) + 2 * of_sum(key.shape[1])) * float(value.abs().max())


@torch.no_grad()
def of_model(model: torch.nn.Module, ids: torch.Tensor, attribute: str = "logits", **inputs: torch.Tensor) -> float:
    """Of what a float32 transformers model says of ids [1, length]: how far it moves in float64 when every module's
    output is off as its sums would be in float32, relative to a row's root mean square.

    Sums of terms of either sign are off by less, and the largest element decides for all.
    """
    exact, noisy = copy.deepcopy(model).double().eval(), copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(0)

    def round_off(module: torch.nn.Module, args: tuple[object, ...], out: object) -> object:
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return out
        x = args[0] if args and isinstance(args[0], torch.Tensor) else out
        size = out.square().mean(-1, keepdim=True).sqrt()
        noise = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        return out + (of_sum(x.shape[-1]) * size * noise).to(out.dtype)

    for module in noisy.modules():
        if not list(module.children()):
            module.register_forward_hook(round_off)
    a, b = (made(ids, **inputs) for made in (exact, noisy))
    return float((getattr(a, attribute) - getattr(b, attribute)).abs().max())
