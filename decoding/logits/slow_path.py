"""Rows that a fast method could not decide are computed again by the exact one.

To know which they are the host must look, and on a GPU wait for it. So with few rows on a GPU the exact method runs for
all of them, and each row keeps the result that it needs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from decoding.device import is_asynchronous

FEW_ROWS = 16

Rows = list[int] | slice


def mended(quick: torch.Tensor, is_clear: torch.Tensor, exact: Callable[[Rows], torch.Tensor]) -> torch.Tensor:
    """quick [rows, n], which may be overwritten, with exact results in the rows where is_clear [rows, 1] is false."""
    if is_asynchronous(quick.device) and len(quick) <= FEW_ROWS:
        return torch.where(is_clear, quick, exact(slice(None)))
    unclear = where_not(is_clear)
    if unclear:
        quick[unclear] = exact(unclear)
    return quick


def where_not(is_clear: torch.Tensor) -> list[int]:
    """The rows of [rows, 1] that are not. On a GPU the host waits here."""
    return [int(i) for i in (~is_clear).squeeze(1).nonzero().flatten().tolist()]
