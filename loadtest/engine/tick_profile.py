"""`python -m loadtest.engine.tick_profile [DIR]`: where a decode tick's milliseconds go, as a Markdown table.

Every row decodes greedily. Runs our engine in this process; no server. Quote figures of one sitting.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import get_args

import torch

from decoding.contract.quantize import Quantize
from decoding.gguf.embedded import ensure_directory
from decoding.model.loading import load
from loadtest.engine.bench import threads_as_in_the_worker
from loadtest.engine.stopwatch import PHASES, profile


def table(lines: Sequence[tuple[str, int, float, dict[str, float]]]) -> str:
    heads = ["weights", "rows", "whole tick", *PHASES, "rest"]
    cells = [heads, ["---"] * len(heads)]
    for form, rows, whole, parts in lines:
        numbers = [whole, *parts.values(), whole - sum(parts.values())]
        cells.append([f"`{form}`", str(rows), *(f"{number:.2f}" for number in numbers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine.tick_profile")
    parser.add_argument("directory", metavar="DIR", nargs="?", help="a local model; none: the embedded one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--forms", nargs="+", choices=get_args(Quantize), default=["none"], help="of the weights")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    given = parser.parse_args(argv)
    directory = given.directory or str(ensure_directory(None, lambda *_: None))
    lines: list[tuple[str, int, float, dict[str, float]]] = []
    for form in given.forms:
        model = load(directory, device=given.device, dtype="auto", quantize=form)
        with threads_as_in_the_worker(model), torch.inference_mode():
            lines += [(form, rows, *profile(model, rows, given.prompt, given.new)) for rows in given.rows]
    show(table(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
