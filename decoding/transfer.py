"""Host numbers on their way to the device, without the host waiting for the work the device still has to do.

A plain `.to("cuda")` of a host tensor waits for the whole stream; from pinned memory it is only queued. torch keeps
pinned memory from being used again before its copy is done.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device, of its dtype and shape; on the CPU the same memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def indices(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 [n]: what a list as an index would be, without the wait."""
    return to_device(np.asarray(values, dtype=np.int64), device)
