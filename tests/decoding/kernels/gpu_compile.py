"""`python -m tests.decoding.kernels.gpu_compile 90 NAME …`: compiles what ticks launch, for a GPU of compute capability
9.0, without one.

Runs the launching code itself over tensors of the CPU, with Triton told that there is such a GPU and that nothing is to
be launched; prints one JSON line for each kernel compiled. Not for pytest's process, where Triton interprets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from decoding.attention.interface import Batch, LayerSpec
from decoding.attention.pages import LayerShape
from decoding.attention.triton import TritonAttention
from decoding.model.graphs import unpack
from decoding.topk.triton import triton_topk

CPU = torch.device("cpu")
MODELS: dict[str, tuple[LayerShape, dict[str, Any], torch.dtype]] = {
    "llama": (LayerShape(32, 8, 128, 128), {}, torch.bfloat16),
    "smollm2": (LayerShape(9, 3, 64, 64), {}, torch.bfloat16),
    "gemma": (LayerShape(8, 4, 256, 256), {"sliding_window": 4096, "softcap": 50.0}, torch.bfloat16),
    "gpt_oss": (LayerShape(64, 8, 64, 64), {"sliding_window": 128, "sinks": torch.zeros(64)}, torch.bfloat16),
    "t5": (LayerShape(16, 16, 64, 64), {"bias": torch.zeros(16, 129)}, torch.bfloat16),
    "llama_float32": (LayerShape(32, 8, 128, 128), {}, torch.float32),
}


class Driver:
    """Stands for that of a GPU."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


PRODUCTS = {"wgmma": "wgmma.mma", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}


def described(kernel: Any) -> dict[str, Any]:
    """buffers: how many blocks of keys or values can be in shared memory at once. spilled: bytes that a thread keeps in
    memory for want of registers.
    """
    ptx = kernel.asm["ptx"]
    products = [name for name, instruction in PRODUCTS.items() if instruction in ptx]
    buffers = re.findall(r"memdesc<(\d+)x\d+x\d+xb?f\d+", kernel.asm["ttgir"])
    return {
        "shared": kernel.metadata.shared,
        "product": products[0] if products else None,
        "buffers": min(map(int, buffers), default=0),
        "spilled": spilled(kernel.asm["cubin"]),
        "is_tf32": "tf32" in ptx,
    }


def spilled(cubin: bytes) -> int:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return int(re.findall(r"STACK:(\d+)", said.stdout + said.stderr)[0])


def compile_only(describe: Callable[[Any], dict[str, Any]] = described, capability: int = 90) -> None:
    """Launch nothing from here on, but compile what would be, and print each kernel once."""
    seen = []

    def launch(function: Any, grid: Any) -> Any:
        def compiled(*args: Any, **options: Any) -> None:
            kernel = function.run(*args, grid=grid, warmup=True, **options)
            if not any(kernel is other for other in seen):
                seen.append(kernel)
                print(json.dumps({"kernel": function.fn.__name__} | describe(kernel)), flush=True)

        return compiled

    driver.set_active(Driver(capability))
    JITFunction.__getitem__ = launch


def batch(counts: list[int], contexts: list[int]) -> Batch:
    """Rows that feed so many tokens, the last of so many positions."""
    pages = -(-max(contexts) // 16)
    tables = 1 + np.arange(len(counts) * pages).reshape(-1, pages)
    positions = np.concatenate([np.arange(c - n, c) for n, c in zip(counts, contexts, strict=True)])
    rows = np.repeat(np.arange(len(counts)), counts)
    return Batch(
        token_ids=np.zeros_like(positions),
        positions=positions,
        slots=tables[rows, positions // 16] * 16 + positions % 16,
        query_starts=np.cumsum([0, *counts]),
        kv_lengths=np.array(contexts),
        page_tables=tables,
    )


def attend(name: str, ticks: Sequence[Batch], recorded: Sequence[tuple[int, int]] = ()) -> None:
    """recorded: rows and pages of recorded decode steps."""
    shape, options, dtype = MODELS[name]
    attention = TritonAttention([shape], device=CPU, dtype=dtype)
    attention._precision = "tf32x3" if dtype == torch.float32 else "ieee"
    attention.allocate(2)
    plans = [(attention.plan(tick), tick.num_tokens) for tick in ticks]
    for rows, pages in recorded:
        packed = torch.zeros(rows * (4 + pages), dtype=torch.int64)
        plans.append((attention.decode_plan(unpack(packed, rows, pages)), rows))
    row = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    sizes = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    for plan, tokens in plans:
        parts = torch.zeros(1, tokens, row, dtype=dtype).split_with_sizes(sizes, -1)
        query, key, value = (part.unflatten(-1, (-1, shape.head_dim)).transpose(1, 2) for part in parts)
        attention.forward(LayerSpec(0, 0.125, **options), query, key, value, plan)


def attend_always(name: str) -> None:
    """Ticks of decode and of prefill, split by keys and not, of many numbers of rows and of pages."""
    ticks = [batch([1], [9]), batch([1, 1], [300, 20]), batch([1, 1, 1], [700, 20, 3]), batch([1] * 40, [33] * 40),
             batch([5, 1], [5, 9]), batch([300, 20, 1], [300, 30, 400]), batch([40] * 17, [41] * 17)]  # fmt: skip
    attend(name, ticks, [(rows, pages) for rows in (1, 2, 64) for pages in (16, 64)])


def copy() -> None:
    attention = TritonAttention([MODELS["llama"][0]] * 2, device=CPU, dtype=torch.bfloat16)
    attention.allocate(4)
    for pairs in ([(1, 2)], [(1, 2), (1, 3)]):
        attention.copy_pages(pairs)


def score() -> None:
    for vocab in (128256, 151936):
        for rows, k in ((1, 0), (3, 1), (7, 5), (2, 15), (2, 20)):
            for normalises in (True, False):
                _topk(torch.zeros(rows, vocab), k, normalises=normalises)
    _topk(torch.zeros(1, 262144), 128, normalises=True)


def _topk(z: torch.Tensor, k: int, *, normalises: bool) -> None:
    with suppress(RuntimeError):  # ids that nothing was launched to write
        triton_topk(z, k, normalises)


def main(names: list[str]) -> None:
    for name in names:
        if name == "scores":
            score()
        elif name == "copies":
            copy()
        elif name == "variants":
            attend("gemma", [batch([1], [9])])
            attend("gpt_oss", [batch([5], [5])])
            attend("t5", [batch([1], [9])])
        elif name == "wide":
            attend("gemma", [batch([5], [5])])
        elif name == "all":
            main(["llama", "llama_float32", "variants"])
        else:
            attend_always(name)


if __name__ == "__main__":
    compile_only(capability=int(sys.argv[1]))
    main(sys.argv[2:])
