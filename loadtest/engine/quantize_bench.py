"""`python -m loadtest.engine.quantize_bench [DIR]`: what each form of weights costs and gains, as a Markdown table.

For each form: perplexity on a fixed text, bytes of weights that a step reads, milliseconds of a whole decode tick and
tokens a second at several numbers of rows. Of transformers' own model in bfloat16 the first two alone, to compare with.
Runs our engine in this process; no server. Quote figures of one sitting.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from decoding.contract.quantize import Quantize
from decoding.device import resolve_device
from decoding.gguf.embedded import ensure_directory
from decoding.model.linear import weight_bytes
from decoding.model.loading import load
from decoding.model.quantize import CAPABILITIES, ROUNDED
from loadtest.engine.bench import Bench, Load, threads_as_in_the_worker
from loadtest.engine.perplexity import ids_of, perplexity

TEXT = Path(__file__).parents[1] / "text.txt"
TRANSFORMERS = "transformers-bfloat16"
FORMS: Mapping[str, tuple[str, Quantize]] = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    **{form: ("auto", form) for form in get_args(Quantize)},
    TRANSFORMERS: ("bfloat16", "none"),
}
CPU_FORMS = ("float32", "bfloat16", TRANSFORMERS, *ROUNDED)
CUDA_FORMS = ("none", *CAPABILITIES)


@dataclass(frozen=True, slots=True)
class Plan:
    directory: str
    device: torch.device
    text: Path
    forms: tuple[str, ...]
    rows: tuple[int, ...]
    prompt: int
    new: int
    json: Path | None


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one number of rows. tick_seconds: median of the ticks in which each row decodes. tokens_per_second: the run's,
    prefill included."""

    rows: int
    tick_seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Line:
    """One form's line of the table."""

    form: str
    dtype: str
    perplexity: float
    weight_bytes: int
    speeds: tuple[Speed, ...]


def measure(plan: Plan, form: str) -> Line:
    if form == TRANSFORMERS:
        return _of_transformers(plan)
    dtype, quantize = FORMS[form]
    model = load(plan.directory, device=plan.device.type, dtype=dtype, quantize=quantize)
    with threads_as_in_the_worker(model), torch.inference_mode():
        found = perplexity(model, ids_of(plan.directory, plan.text))
        bench = Bench(model, Load(max(plan.rows), plan.prompt, plan.new))
        speeds = tuple(_speed(bench, plan, rows) for rows in plan.rows)
    return Line(form, str(model.info.dtype).removeprefix("torch."), found, model.weight_bytes, speeds)


def _of_transformers(plan: Plan) -> Line:
    lm: Any = AutoModelForCausalLM.from_pretrained(plan.directory, dtype=torch.bfloat16, local_files_only=True)
    lm = lm.eval().to(plan.device)
    ids = torch.from_numpy(ids_of(plan.directory, plan.text)).to(plan.device)
    with torch.inference_mode():
        logits = lm(ids[None, :-1]).logits[0].float()
        found = math.exp(float(cross_entropy(logits, ids[1:])))
    return Line(TRANSFORMERS, "bfloat16", found, sum(map(weight_bytes, lm.modules())), ())


def _speed(bench: Bench, plan: Plan, rows: int) -> Speed:
    bench.run(bench.requests(rows, seed=rows))
    run = bench.run(bench.requests(rows, seed=rows + 1000))
    return Speed(rows, run.decode_seconds(rows), rows * plan.new / run.seconds)


def table(lines: Sequence[Line]) -> str:
    rows = [speed.rows for speed in max((line.speeds for line in lines), key=len)]
    heads = ["weights, computed in", "perplexity", "MB a step reads"]
    heads += [f"ms a tick, {count}" for count in rows] + [f"tok/s, {count}" for count in rows]
    cells = [heads, ["---"] * len(heads), *(_cells(line, len(rows)) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cells(line: Line, rows: int) -> list[str]:
    ticks = [f"{1e3 * speed.tick_seconds:.1f}" for speed in line.speeds] or ["–"] * rows
    speeds = [f"{speed.tokens_per_second:.1f}" for speed in line.speeds] or ["–"] * rows
    megabytes = f"{line.weight_bytes / 1e6:.0f}"
    return [f"`{line.form}`, {line.dtype}", f"{line.perplexity:.2f}", megabytes, *ticks, *speeds]


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    plan = _parse(argv)
    lines = []
    for form in plan.forms:
        lines.append(measure(plan, form))
        show(f"{form}: done")
        gc.collect()  # the next model needs this one's memory
    show(f"{plan.directory}, {plan.device}, {plan.prompt} tokens in, {plan.new} out, greedy")
    show(table(lines))
    if plan.json is not None:
        document = {"plan": {**asdict(plan), "device": str(plan.device)}, "lines": [asdict(line) for line in lines]}
        plan.json.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
    return 0


def _parse(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine.quantize_bench")
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="a local Hugging Face model; none: the embedded one"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="by default those that the device can have")
    parser.add_argument("--text", type=Path, default=TEXT, help="for the perplexity")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--json", type=Path, help="write everything there")
    given = parser.parse_args(argv)
    device = resolve_device(given.device)
    return Plan(
        directory=given.directory or str(ensure_directory(None, lambda *_: None)),
        device=device,
        text=given.text,
        forms=tuple(given.forms or (CUDA_FORMS if device.type == "cuda" else CPU_FORMS)),
        rows=tuple(given.rows),
        prompt=given.prompt,
        new=given.new,
        json=given.json,
    )


if __name__ == "__main__":
    raise SystemExit(main())
