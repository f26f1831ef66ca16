"""`python -m loadtest.gpu_accept.peers`: others on the same GPU, with models of the same shapes and prompts as many.

transformers' continuous batching (`generate_batch`) and its compiled static cache; vLLM, with beams by
vllm-beam-search-plugin, where they are installed. Each has one run to warm up and compile, and one that counts. A run
of its own beside `python -m loadtest.gpu_accept`, because they take minutes to compile.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from loadtest.engine.machine import about, synchronize
from loadtest.gpu_accept.plan import machine
from loadtest.gpu_accept.report import Figure, Report
from loadtest.gpu_accept.runner import Means, Skip, Step, cut_at_deadline, end_now, run
from loadtest.gpu_accept.scale import FULL, TINY
from loadtest.gpu_accept.session import Session
from loadtest.gpu_accept.shapes import SHAPES, Work, build, work_of
from loadtest.gpu_accept.speed import decode_floor

BEAM_SCHEDULER = "vllm_beam_search.scheduler.BeamSearchScheduler"

Peer = Callable[[Any, Sequence[Sequence[int]], int], None]
"""Generates so many tokens for each prompt, greedily; raises where it cannot."""


def continuous_batching(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    found = model.generate_batch(
        [list(prompt) for prompt in prompts], generation_config=_config(new_tokens), progress_bar=False
    )
    lengths = [len(output.generated_tokens) for output in found.values()]
    _require(lengths, len(prompts), new_tokens)


def static_cache(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """On a GPU transformers compiles the decode step of this cache by itself."""
    ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    config = _config(new_tokens)
    config.cache_implementation = "static"
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    _require([out.shape[1] - ids.shape[1]] * len(out), len(prompts), new_tokens)


PEERS: dict[str, Peer] = {"static cache": static_cache, "continuous batching": continuous_batching}


def vllm_sampling(llm: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    _vllm(llm, prompts, new_tokens)


def vllm_beams(llm: Any, prompts: Sequence[Sequence[int]], new_tokens: int, width: int) -> None:
    _vllm(llm, prompts, new_tokens, extra_args={"beam_width": width})


def _vllm(llm: Any, prompts: Sequence[Sequence[int]], new_tokens: int, **options: Any) -> None:
    from vllm import SamplingParams  # noqa: PLC0415 - rarely installed

    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False, **options)
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False)
    _require([len(output.outputs[0].token_ids) for output in outputs], len(prompts), new_tokens)


def _config(new_tokens: int) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=0
    )


def _require(lengths: Sequence[int], count: int, new_tokens: int) -> None:
    if list(lengths) != [new_tokens] * count:
        raise RuntimeError(f"{len(lengths)} of {count} answers, of {set(lengths)} tokens")


class Others:
    """The peers' model of one shape: transformers' and vLLM's, never both at once."""

    def __init__(self, session: Session, shape: str) -> None:
        self._session = session
        self.shape = shape
        self._lm: Any = None
        self._llm: Any = None
        self._scheduler: str | None = None
        self._work: Work | None = None

    def time_transformers(self, peer: Peer, num_rows: int) -> Iterator[Figure]:
        if self._lm is None:
            self.close()
            self._lm = build(self.shape, self._session.device, self._session.dtype)
        return self._timed(partial(peer, self._lm), num_rows, num_rows)

    def time_vllm(self, num_rows: int) -> Iterator[Figure]:
        return self._timed(partial(vllm_sampling, self._vllm(None)), num_rows, num_rows)

    def time_vllm_beams(self) -> Iterator[Figure]:
        if importlib.util.find_spec("vllm_beam_search") is None:
            raise Skip("vllm-beam-search-plugin is not installed")
        width, count = self._session.scale.beams
        return self._timed(partial(vllm_beams, self._vllm(BEAM_SCHEDULER), width=width), count, width * count)

    def close(self) -> None:
        self._lm = self._llm = None
        self._session.close()

    def _vllm(self, scheduler: str | None) -> Any:
        """Random weights of the shape, no tokenizer."""
        if importlib.util.find_spec("vllm") is None:
            raise Skip("vLLM is not installed")
        from vllm import LLM  # noqa: PLC0415 - rarely installed

        if self._llm is None or self._scheduler != scheduler:
            self.close()
            scale = self._session.scale
            options: dict[str, Any] = {} if scheduler is None else {"scheduler_cls": scheduler}
            with tempfile.TemporaryDirectory() as directory:
                save_config(self.shape, Path(directory))
                self._llm = LLM(
                    directory, load_format="dummy", skip_tokenizer_init=True, max_num_seqs=scale.most_rows,
                    max_model_len=scale.prompt + scale.new, enable_prefix_caching=False, **options,
                )  # fmt: skip
            self._scheduler = scheduler
        return self._llm

    def _timed(
        self, peer: Callable[[Sequence[Sequence[int]], int], None], num_prompts: int, num_rows: int
    ) -> Iterator[Figure]:
        """Of the second of two runs. The first compiles and records."""
        scale, device = self._session.scale, self._session.device
        generator = torch.Generator().manual_seed(num_prompts)
        vocab = SHAPES[self.shape]().vocab_size
        prompts = torch.randint(0, vocab, (num_prompts, scale.prompt), generator=generator).tolist()
        peer(prompts, scale.new)
        synchronize(device)
        started = time.perf_counter()
        peer(prompts, scale.new)
        synchronize(device)
        speed = num_rows * scale.new / (time.perf_counter() - started)
        limit = num_rows / decode_floor(self.work, self._session.box, num_rows, scale.prompt + scale.new // 2)
        yield Figure(f"{num_rows} rows, {scale.prompt} in, {scale.new} out", speed, "tok/s", limit)

    @property
    def work(self) -> Work:
        if self._work is None:
            self._work = work_of(build(self.shape, torch.device("meta"), self._session.dtype))
        return self._work


def save_config(shape: str, directory: Path) -> None:
    config = SHAPES[shape]()
    family = type(config).__name__.removesuffix("Config")
    config.architectures = [f"{family}ForCausalLM"]
    config.save_pretrained(directory)


def steps(session: Session, shapes: Sequence[str]) -> Iterator[Step]:
    costs, scale = session.scale.costs, session.scale
    yield Step("machine", partial(machine, session), 5 * costs)
    for shape in shapes:
        others = Others(session, shape)
        for name, peer in PEERS.items():
            for rows in scale.rows:
                timed = partial(others.time_transformers, peer, rows)
                yield Step(f"{shape}, transformers' {name}, {rows} rows", timed, 60 * costs)
        for rows in scale.rows:
            yield Step(f"{shape}, vLLM, {rows} rows", partial(others.time_vllm, rows), 30 * costs)
        width, count = scale.beams
        yield Step(f"{shape}, vLLM, beams {count} x {width}", others.time_vllm_beams, 60 * costs)


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    started = time.monotonic()
    given = _parse(argv)
    device = torch.device("cpu") if given.tiny else torch.device("cuda", 0)
    session = Session(device, torch.float32 if given.tiny else torch.bfloat16, TINY if given.tiny else FULL)
    report = Report({"date": datetime.now(UTC).isoformat(timespec="seconds")} | about(device), given.json)
    means = Means(started + given.seconds, session.free_bytes)
    watchdog = cut_at_deadline(report, means, lambda: end_now(report, show))
    shapes = given.shape or session.scale.shapes
    chosen = [s for s in steps(session, shapes) if not given.only or any(part in s.name for part in given.only)]
    run(chosen, report, means, show)
    watchdog.cancel()
    show(report.table())
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    description = (__doc__ or "").split("\n\n")[1]
    parser = argparse.ArgumentParser(prog="python -m loadtest.gpu_accept.peers", description=description)
    parser.add_argument("--shape", nargs="+", choices=SHAPES)
    parser.add_argument("--seconds", type=float, default=560, help="when it ends, whatever is done by then")
    parser.add_argument("--json", type=Path, help="where all figures go, after each of them")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="steps whose names have one of these")
    parser.add_argument("--tiny", action="store_true", help="at the size of a toy, on a CPU")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
