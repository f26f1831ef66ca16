"""T5's relative position bias (Raffel et al. 2019, arXiv 1910.10683): what a head adds by how far apart tokens are.

Distances up to half of the buckets have one each, those up to max_distance share the others on a logarithmic scale, and
all beyond share the last. So a bias is a short table by distance.
"""

from __future__ import annotations

import math

import torch


def causal_bias(weight: torch.Tensor, max_distance: int) -> torch.Tensor:
    """weight [buckets, heads] -> [heads, max_distance + 1], by how far back the key lies."""
    distances = torch.arange(max_distance + 1, device=weight.device)
    return weight[_buckets(distances, len(weight), max_distance)].T.float().contiguous()


def bidirectional_bias(weight: torch.Tensor, max_distance: int) -> torch.Tensor:
    """weight [buckets, heads] -> [heads, 2 * max_distance + 1], by key position minus query position + max_distance."""
    half = len(weight) // 2
    relative = torch.arange(-max_distance, max_distance + 1, device=weight.device)
    buckets = _buckets(relative.abs(), half, max_distance) + half * (relative > 0)
    return weight[buckets].T.float().contiguous()


def _buckets(distances: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Distances >= 0 -> buckets; float32 throughout, so that they round to the same bucket as the models' own do."""
    max_exact = num_buckets // 2
    scale = torch.log(distances.float() / max_exact) / math.log(max_distance / max_exact)
    large = (max_exact + (scale * (num_buckets - max_exact)).long()).clamp(max=num_buckets - 1)
    return torch.where(distances < max_exact, distances, large)
