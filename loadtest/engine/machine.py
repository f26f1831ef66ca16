"""What the machine can do: names, versions, copy bandwidth and product speed as torch reaches them, and a clock."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "triton")


@dataclass(frozen=True, slots=True)
class Box:
    """bytes_per_second counts what a copy reads and what it writes; flops_per_second two for each multiply and add."""

    bytes_per_second: float
    flops_per_second: float


def about(device: torch.device) -> dict[str, Any]:
    """Names and versions."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else platform.processor() or platform.machine(),
        "memory": torch.cuda.get_device_properties(device).total_memory if is_gpu else None,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def measure(device: torch.device, dtype: torch.dtype) -> Box:
    is_gpu = device.type == "cuda"
    size, width = (1 << 30, 8192) if is_gpu else (1 << 24, 256)
    # Zeros are copied and multiplied faster than numbers are.
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return Box(
        bytes_per_second=2 * size / seconds(lambda: target.copy_(source), device),
        flops_per_second=2 * width**3 / seconds(lambda: a @ b, device),
    )


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median time of one call, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def seconds_each(works: Sequence[Callable[[], object]], device: torch.device, repeats: int = 10) -> float:
    """Median time of one of several calls, one after the other; on a GPU recorded, so that no host is in between."""
    for work in works:
        work()
    if device.type != "cuda":
        return seconds(lambda: [work() for work in works], device, repeats) / len(works)
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    return seconds(graph.replay, device, repeats) / len(works)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
