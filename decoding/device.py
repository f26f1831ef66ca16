"""Numbers on their way between host and device, without either waiting for more than it must; and what runs there.

A plain `.to("cuda")` of a host tensor waits for the whole stream; from pinned memory it is only queued. torch keeps
pinned memory from being used again before its copy is done. The other way, what was launched behind a copy is not
waited for.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


def resolve_device(device: str) -> torch.device:
    """auto: CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def is_asynchronous(device: torch.device) -> bool:
    """Whether the host would have to wait for a result that it wants to look at."""
    return device.type == "cuda"


def has_triton() -> bool:
    return missing_for_triton() is None


def missing_for_triton() -> str | None:
    """What Triton would need to launch anything: it compiles, with a C compiler, what it then loads."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if "CC" not in os.environ and not any(shutil.which(name) for name in ("gcc", "clang")):
        return "Triton finds no C compiler"
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"code")
            file.flush()
            mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as error:
        return (
            f"what Triton compiles cannot be loaded from {folder} ({error.strerror}): with Docker mount it by"
            " --tmpfs /tmp:exec, or set TRITON_CACHE_DIR to a folder that is not mounted noexec"
        )
    return None


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device, of its dtype and shape; on the CPU the same memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def indices(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 [n]: what a list as an index would be, without the wait."""
    return to_device(np.asarray(values, dtype=np.int64), device)


class Arriving:
    """A device tensor on its way into pinned host memory; on the CPU it is there at once."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.cpu()
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()

    def wait(self) -> np.ndarray:
        """The numbers, once they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._host.numpy()


class HostCopy:
    """Gathers device tensors and moves them to the host in one transfer. Ids travel as float64, exact below 2**53."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._arriving: Arriving | None = None
        self._arrays: list[np.ndarray] = []

    def add(self, tensor: torch.Tensor) -> int:
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def send(self) -> None:
        """Launch the transfer. Call once, after the last `add`; what is launched later does not hold it up."""
        if self._tensors:
            self._arriving = Arriving(torch.cat([t.detach().double().flatten() for t in self._tensors]))

    def fetch(self) -> None:
        """Wait for what was sent."""
        if self._arriving is None:
            return
        flat = self._arriving.wait()
        ends = np.cumsum([t.numel() for t in self._tensors])[:-1]
        parts = np.split(flat, ends)
        self._arrays = [p.reshape(tuple(t.shape)) for p, t in zip(parts, self._tensors, strict=True)]

    def get(self, handle: int) -> np.ndarray:
        return self._arrays[handle]
