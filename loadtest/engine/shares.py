"""`python -m loadtest.engine.shares [DIR]`: how much of what this machine can do is used, as a Markdown table.

For each format of weights and number of rows: the model's products by themselves, one after the other, and whole decode
ticks, both as shares of the fastest tile's rate (`rates.py`) and of what reading the weights from memory would allow,
whichever is less. Runs our engine in this process; no server. Quote figures of one sitting on a quiet machine.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decoding.contract.quantize import Quantize
from decoding.gguf.embedded import ensure_directory
from decoding.kernels.cpu.panels import PanelLinear
from decoding.kernels.cpu.tile import Format, format_for
from decoding.model.loading import load, read_config
from loadtest.engine.bench import threads_as_in_the_worker
from loadtest.engine.rates import peak, reading
from loadtest.engine.stopwatch import profile

FORMS: dict[str, tuple[str, Quantize]] = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("auto", "int8"),
    "int4": ("auto", "int4"),
}
PROMPT, NEW = 64, 32
BEST_OF = 5


@dataclass(frozen=True, slots=True)
class Products:
    """Every product that one token takes, with random weights."""

    linears: tuple[PanelLinear, ...]

    @classmethod
    def of(cls, config: Any, form: Format | None) -> Products:
        return cls(
            tuple(PanelLinear(torch.randn(*shape).bfloat16().float(), None, form=form) for shape in _shapes(config))
        )

    @property
    def operations(self) -> int:
        """Multiplications and additions of one row."""
        return sum(2 * each.shape[0] * each.shape[1] for each in self.linears)

    @property
    def weight_bytes(self) -> int:
        return sum(each.weight_bytes for each in self.linears)

    def seconds(self, rows: int) -> float:
        inputs = {each.shape[1]: torch.randn(rows, each.shape[1]) for each in self.linears}
        return min(self._once(inputs) for _ in range(BEST_OF))

    def _once(self, inputs: dict[int, torch.Tensor]) -> float:
        started = time.perf_counter()
        for each in self.linears:
            each(inputs[each.shape[1]])
        return time.perf_counter() - started


def _shapes(config: Any) -> Iterator[tuple[int, int]]:
    """[columns, depth] of a Llama's products, those that share an input as one."""
    hidden, middle = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    for _ in range(config.num_hidden_layers):
        yield from ((queries + 2 * keys, hidden), (hidden, queries), (2 * middle, hidden), (hidden, middle))
    yield config.vocab_size, hidden


@dataclass(frozen=True, slots=True)
class Line:
    form: str
    rows: int
    products: float  # seconds
    tick: float  # seconds
    limit: float  # seconds: what the machine would need

    def cells(self) -> list[str]:
        spans = [f"{1e3 * self.products:.1f}", f"{1e3 * self.tick:.1f}"]
        shares = [f"{100 * self.limit / span:.0f} %" for span in (self.products, self.tick)]
        return [
            f"`{self.form}`",
            str(self.rows),
            spans[0],
            shares[0],
            spans[1],
            shares[1],
            f"{self.rows / self.tick:.0f}",
        ]


HEADS = ["weights", "rows", "products, ms", "of the limit", "whole tick, ms", "of the limit", "tokens a second"]


def measure(directory: str, form: str, rows: Sequence[int], threads: int, memory: float) -> Iterator[Line]:
    dtype, quantize = FORMS[form]
    model = load(directory, device="cpu", dtype=dtype, quantize=quantize)
    own = format_for("bfloat16" if form == "bfloat16" else quantize)
    products = Products.of(read_config(directory), own)
    rate = peak(products.linears[0].panels.form, threads)
    with threads_as_in_the_worker(model), torch.inference_mode():
        for count in rows:
            limit = max(count * products.operations / rate, products.weight_bytes / memory)
            tick, _ = profile(model, count, PROMPT, max(NEW, count // 2))  # long enough that all decode at once
            yield Line(form, count, products.seconds(count), tick / 1e3, limit)


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine.shares")
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="a local model of Llama's shape; none: the embedded one"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="of the weights")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    given = parser.parse_args(argv)
    directory = given.directory or str(ensure_directory(None, lambda *_: None))
    threads = torch.get_num_threads()
    memory = reading(threads)
    rates = ", ".join(f"{form.value} {peak(form, threads) / 1e9:.0f}" for form in Format)
    show(f"{threads} threads; 10^9 operations a second: {rates}; reading {memory / 1e9:.0f} GB/s")
    cells = [HEADS, ["---"] * len(HEADS)]
    for form in given.forms:
        cells += [line.cells() for line in measure(directory, form, given.rows, threads, memory)]
        gc.collect()  # the next model needs this one's memory
    show("\n".join(f"| {' | '.join(row)} |" for row in cells))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
