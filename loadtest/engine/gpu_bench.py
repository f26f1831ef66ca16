"""`python -m loadtest.engine.gpu_bench`: the engine on a GPU, in this process, beside transformers' and the limit.

Needs torch, triton and transformers only. Builds a model of a real shape with random weights, measures what the machine
can do, checks that the engine is right and that a row's tokens do not depend on the batch, times decode, prefill and
beams, and after them the peers; prints each as soon as it is known, as a share of the time that reading the weights and
the cache or multiplying takes at the least, and writes all of it as JSON. A measurement that fails is printed as such
and ends no other. Exits 1 where a check or a measurement of ours fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from decoding.contract.params import Beam, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.model.loading import wrap
from loadtest.engine.gpu_box import Box, measure
from loadtest.engine.gpu_engine import GREEDY, Bench, Options
from loadtest.engine.gpu_peers import PEERS, seconds_of
from loadtest.engine.gpu_shapes import SHAPES, Work, build, work_of

MEAN_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Of log-probs, against transformers' own forward."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    is_passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Result:
    """value in unit; floor: what the machine could reach, in the same unit. peer: who was measured, if not we."""

    name: str
    value: float | None
    unit: str
    floor: float | None = None
    peer: str | None = None
    note: str | None = None

    @property
    def is_failed(self) -> bool:
        return self.value is None

    @property
    def share(self) -> float | None:
        """Of the limit: 1 is all that the machine can do."""
        if self.value is None or self.floor is None:
            return None
        return self.value / self.floor if self.unit == "tok/s" else self.floor / self.value


# checks


@torch.inference_mode()
def own_logprobs(causal_lm: Any, prompt: Sequence[int]) -> tuple[float, ...]:
    """Of every token of the prompt but the first, by transformers' own forward."""
    ids = torch.tensor([list(prompt)], device=causal_lm.device)
    scores = causal_lm(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return tuple(scores.gather(1, ids[0, 1:, None])[:, 0].tolist())


def check(bench: Bench, options: Options, prompt: Sequence[int], expected: Sequence[float]) -> Iterator[Check]:
    yield _check_scores("prefill agrees with transformers", _scored(bench, prompt), expected, options.dtype)
    yield _check_decode(bench, options)
    yield _check_batch(bench, options)


def _scored(bench: Bench, prompt: Sequence[int]) -> tuple[float, ...]:
    request = Request(tuple(prompt), logits=GREEDY, stopping=StoppingParams(0), logprobs=LogprobsParams(prompt=0))
    return bench.run([request]).prompt_logprobs[0]


def _check_scores(name: str, found: Sequence[float], expected: Sequence[float], dtype: torch.dtype) -> Check:
    errors = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    mean = statistics.mean(errors)
    return Check(
        name, mean < MEAN_ERROR[dtype], f"log-probs differ by {mean:.2g} on average, {max(errors):.2g} at most"
    )


def _check_decode(bench: Bench, options: Options) -> Check:
    """Log-probs of tokens as they were decoded, against those of the same tokens read as a prompt."""
    request = replace(bench.requests(1, seed=11)[0], logprobs=LogprobsParams(output=0))
    decoded = bench.run([request])
    read = _scored(bench, request.prompt_ids + decoded.tokens[0])[-len(decoded.tokens[0]) :]
    return _check_scores("decode agrees with prefill", decoded.logprobs[0], read, options.dtype)


def _check_batch(bench: Bench, options: Options) -> Check:
    """Rows alone, and among others that come and go. In half precision exact only where batch invariance is on."""
    requests = [replace(r, logprobs=LogprobsParams(output=0)) for r in bench.requests(min(12, max(options.rows)), 12)]
    shorter = [
        replace(r, prompt_ids=r.prompt_ids[: 1 + 7 * i], stopping=replace(r.stopping, max_tokens=options.new - i))
        for i, r in enumerate(requests)
    ]
    together, alone = bench.run(shorter), [bench.run([request]) for request in shorter]
    equal = sum(one.tokens[0] == tokens for one, tokens in zip(alone, together.tokens, strict=True))
    bitwise = sum(one.logprobs[0] == found for one, found in zip(alone, together.logprobs, strict=True))
    must = options.is_batch_invariant or options.dtype == torch.float32
    is_passed = equal == len(alone) or not must
    if options.is_batch_invariant:
        is_passed &= bitwise == len(alone)
    detail = f"{equal} of {len(alone)} rows give the same tokens, {bitwise} the same log-probs bit for bit"
    return Check("alone is as in a batch", is_passed, detail)


# measurements


def time_decode(bench: Bench, options: Options, work: Work, box: Box, num_rows: int) -> Iterator[Result]:
    """What a step takes beyond its forward is reads, and whatever of the host's time is not hidden."""
    context = options.prompt + options.new // 2
    floor = decode_floor(work, box, num_rows, context)
    bench.run(bench.requests(num_rows, seed=num_rows))
    run = bench.run(bench.requests(num_rows, seed=num_rows + 1000))
    whole = num_rows * options.new / run.seconds
    yield Result(f"decode step, {num_rows} rows", run.decode_seconds(num_rows) * 1e3, "ms", floor * 1e3)
    yield Result(f"{num_rows} rows, {options.prompt} in, {options.new} out", whole, "tok/s", num_rows / floor)
    alone = bench.forward_seconds(num_rows, context)
    yield Result(f"forward alone, {num_rows} rows", alone * 1e3, "ms", floor * 1e3)


def decode_floor(work: Work, box: Box, num_rows: int, context: int) -> float:
    """Seconds of a step in which every row feeds a token: read everything once, multiply by everything."""
    read = work.weight_bytes + num_rows * context * work.kv_bytes_per_token
    multiplied = 2 * num_rows * (work.body_parameters + work.head_parameters)
    return max(read / box.bytes_per_second, multiplied / box.flops_per_second)


def time_prefill(bench: Bench, options: Options, work: Work, box: Box) -> Iterator[Result]:
    stopping = StoppingParams(1, ignore_eos=True)
    runs = []
    for seed in range(21, 25):
        (prompt,) = bench.prompts(1, options.prefill, seed)
        runs.append(bench.run([Request(prompt, logits=GREEDY, stopping=stopping)]).seconds)
    multiplied = 2 * (options.prefill * work.body_parameters + work.head_parameters)
    floor = max(multiplied / box.flops_per_second, work.weight_bytes / box.bytes_per_second)
    yield Result(f"prefill of {options.prefill}", statistics.median(runs[1:]) * 1e3, "ms", floor * 1e3)


def time_beams(bench: Bench, options: Options) -> Iterator[Result]:
    """Rows per second of beam search, and of as many rows that sample."""
    width, count = options.beams
    num_rows = width * count
    beams = [replace(r, strategy=Beam(num_beams=width, early_stopping="never")) for r in bench.requests(count, seed=31)]
    sampling = [replace(r, logits=LogitsParams(), seed=at) for at, r in enumerate(bench.requests(num_rows, seed=32))]
    speeds = []
    for requests in (beams, sampling):
        bench.run(requests)
        speeds.append(num_rows / bench.run(requests).decode_seconds(num_rows))
    yield Result(f"beams, {count} x {width}", speeds[0], "tok/s", note=f"{speeds[0] / speeds[1]:.0%} of sampling")
    yield Result(f"sampling, {num_rows} rows", speeds[1], "tok/s")


def time_peers(options: Options, work: Work, box: Box) -> Iterator[Result]:
    if not options.peers:
        return
    causal_lm = build(options.shape, options.device, options.dtype)
    vocab = causal_lm.config.vocab_size
    for name in options.peers:
        for num_rows in options.rows:
            generator = torch.Generator().manual_seed(num_rows)
            prompts = torch.randint(0, vocab, (num_rows, options.prompt), generator=generator).tolist()
            seconds, failure = seconds_of(PEERS[name], causal_lm, prompts, options.new)
            limit = num_rows / decode_floor(work, box, num_rows, options.prompt + options.new // 2)
            speed = None if seconds is None else num_rows * options.new / seconds
            label = f"{num_rows} rows, {options.prompt} in, {options.new} out"
            yield Result(label, speed, "tok/s", limit, peer=name, note=failure)


# the command


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    options = _parse(argv)
    box = measure(options.device, options.dtype)
    show(f"{box.device}, {box.bytes_per_second / 1e9:.0f} GB/s copied, {box.flops_per_second / 1e12:.1f} TFLOP/s")
    work, checks, results = _measure_own(options, box, show)
    is_sound = all(done.is_passed for done in checks) and not any(result.is_failed for result in results)
    gc.collect()  # the peers need the memory
    if options.device.type == "cuda":
        torch.cuda.empty_cache()
    results += shown([("peers", lambda: time_peers(options, work, box))], show)
    if options.json is not None:
        options.json.write_text(_document(options, box, checks, results))
    return 0 if is_sound else 1


def _measure_own(options: Options, box: Box, show: Callable[[str], None]) -> tuple[Work, list[Check], list[Result]]:
    causal_lm = build(options.shape, options.device, options.dtype)
    work = work_of(causal_lm)
    prompt = torch.randint(0, causal_lm.config.vocab_size, (64,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = own_logprobs(causal_lm, prompt)
    model = wrap(causal_lm, is_batch_invariant=options.is_batch_invariant)
    bench = Bench(model, options)
    checks = []
    for done in check(bench, options, prompt, expected):
        show(f"{'ok  ' if done.is_passed else 'FAIL'} {done.name}: {done.detail}")
        checks.append(done)
    steps: list[Step] = [
        (f"{rows} rows", lambda rows=rows: time_decode(bench, options, work, box, rows))  # type: ignore[misc]
        for rows in options.rows
    ]
    steps += [
        ("prefill", lambda: time_prefill(bench, options, work, box)),
        ("beams", lambda: time_beams(bench, options)),
        ("no page lost", lambda: _lost(bench)),
    ]
    return work, checks, shown(steps, show)


def _lost(bench: Bench) -> Iterator[Result]:
    """Nothing; raises where the engine has lost a page."""
    bench.engine.check_integrity()
    yield from ()


Step = tuple[str, Callable[[], Iterable[Result]]]


def shown(steps: Sequence[Step], show: Callable[[str], None]) -> list[Result]:
    """The results of all steps, each shown as it comes; whatever one of them fails of, the others run."""
    results = []
    for name, step in steps:
        try:
            for result in step():
                show(_line(result))
                results.append(result)
        except Exception as error:
            results.append(Result(name, None, "", note=f"{type(error).__name__}: {error}"[:300]))
            show(_line(results[-1]))
    return results


def _line(result: Result) -> str:
    value = "failed" if result.value is None else f"{result.value:,.2f} {result.unit}"
    share = "" if result.share is None else f"  {result.share:.0%} of the limit"
    return f"{result.peer or 'polydecode':20} {result.name:34} {value:>18}{share}  {result.note or ''}".rstrip()


def _document(options: Options, box: Box, checks: Sequence[Check], results: Sequence[Result]) -> str:
    settings = {name: str(value) for name, value in asdict(options).items() if name != "json"}
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "box": asdict(box),
        "options": settings,
        "checks": [asdict(done) for done in checks],
        "results": [asdict(result) | {"share": result.share} for result in results],
    }
    return json.dumps(document, indent=2) + "\n"


def _parse(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.engine.gpu_bench", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256], help="rows that decode at once")
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens of each row")
    parser.add_argument("--new", type=int, default=128, help="output tokens of each row")
    parser.add_argument("--prefill", type=int, default=2048, help="prompt tokens of the prefill measurement")
    parser.add_argument("--beams", type=int, nargs=2, default=[4, 64], metavar=("WIDTH", "REQUESTS"))
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="transformers' own ways")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    return Options(
        device=torch.device(args.device),
        dtype=getattr(torch, args.dtype),
        shape=args.shape,
        rows=tuple(args.rows),
        prompt=args.prompt,
        new=args.new,
        prefill=args.prefill,
        beams=(args.beams[0], args.beams[1]),
        is_batch_invariant=args.batch_invariant,
        peers=tuple(args.peers),
        json=args.json,
    )


if __name__ == "__main__":
    sys.exit(main())
