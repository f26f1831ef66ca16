"""Rows for which a quick way did not suffice, and what is done with them.

Knowing which they are takes a look by the host, which on a GPU must wait for that; where rows are few there, all go the
long way and each keeps the result that it needs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from decoding.device import is_asynchronous

FEW_ROWS = 16

Rows = list[int] | slice


def mended(quick: torch.Tensor, is_clear: torch.Tensor, exact: Callable[[Rows], torch.Tensor]) -> torch.Tensor:
    """quick [rows, n] (may be overwritten), but what `exact` says of the rows that are not clear [rows, 1]."""
    if is_asynchronous(quick.device) and len(quick) <= FEW_ROWS:
        return torch.where(is_clear, quick, exact(slice(None)))
    unclear = where_not(is_clear)
    if unclear:
        quick[unclear] = exact(unclear)
    return quick


def where_not(is_clear: torch.Tensor) -> list[int]:
    """The rows of [rows, 1] that are not. On a GPU the host waits here."""
    return [int(i) for i in (~is_clear).squeeze(1).nonzero().flatten().tolist()]
