"""Make `beams.json` with transformers 4.55.4: beam search, beam sample and group beam search on the tiny models.

    golden/bin/python -m tests.goldens.make_beams

Run from the repository root; the environment is that of `make.py`. Everything runs at batch 1 without padding, in
float32. Beam sample gets its noise from our generator: `torch.multinomial` is replaced by the project's own draw
without replacement, fed the uniforms of (seed, choice 0, position). A run in which some choice between two candidates
was ever closer than MIN_GAP is dropped. Recorded tokens end at the first EOS; the old scorer of group beam search
rewrites an ending EOS into the first of the list, so for that the ending id itself is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers.generation import beam_search as scorer
from transformers.generation.utils import GenerationMixin

from decoding.sampling import draw_without_replacement, uniforms
from decoding.seam import Purpose
from tests.goldens.make import MIN_GAP, TINY_SPECS, write
from tests.goldens.tiny import TinySpec, build, weights_sha256

NEW_TOKENS = 12
NUM_PROMPTS = 3
MANY_EOS = tuple(range(2, 96, 12))  # so that beams and groups end early, and some have to go on without them
VOCAB = 96
PROCESSORS: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.3},
    {"min_new_tokens": 8},
    {"repetition_penalty": 1.2, "min_new_tokens": 5},
)
SAMPLERS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 2.0},
    {"top_k": 24, "temperature": 1.5},
    {"top_p": 0.98, "temperature": 4.0, "repetition_penalty": 1.2},
)


class Gaps:
    """The closest decision of a run."""

    def __init__(self) -> None:
        self.smallest = math.inf

    def between(self, first: float, second: float, scale: float = 1.0) -> None:
        """scale: what the two were divided by."""
        self.smallest = min(self.smallest, abs(first - second) * max(scale, 1.0))

    def cut(self, values: Iterable[float], at: int, scale: float = 1.0) -> None:
        """The best `at` of the values are taken; excluded ones (-1e8 and below) are no rivals."""
        ranked = sorted((v for v in values if v > -1e8), reverse=True)
        if len(ranked) > at:
            self.between(ranked[at - 1], ranked[at], scale)

    def order(self, values: Iterable[float], scale: float = 1.0) -> None:
        ranked = sorted(values, reverse=True)
        for first, second in itertools.pairwise(ranked):
            self.between(first, second, scale)


@contextmanager
def watched_beams(gaps: Gaps) -> Iterator[None]:
    """Report every decision of `_beam_search` to `gaps`."""
    top = GenerationMixin._get_top_k_continuations
    running = GenerationMixin._get_running_beams_for_next_iteration
    update = GenerationMixin._update_finished_beams
    early = GenerationMixin._check_early_stop_heuristic

    def watch_top(self: Any, **given: Any) -> Any:
        if not given["do_sample"]:
            gaps.cut(given["accumulated_log_probs"][0].tolist(), given["num_beams"])
        return top(self, **given)

    def watch_running(self: Any, **given: Any) -> Any:
        hits = given["next_token_hits_stopping_criteria"][0]
        gaps.cut(given["topk_log_probs"][0][~hits].tolist(), given["num_beams"])
        return running(self, **given)

    def watch_update(self: Any, **given: Any) -> Any:
        out = update(self, **given)
        fresh = given["next_token_hits_stopping_criteria"] & given["top_num_beam_mask"][None, :]
        scale = (given["cur_len"] + 1 - given["decoder_prompt_len"]) ** given["length_penalty"]
        scores = given["topk_log_probs"][fresh] / scale
        old = given["beam_scores"][given["is_sent_finished"]]
        gaps.cut(old.tolist() + scores.tolist(), given["num_beams"], scale)
        gaps.order((v for v in out[1][0].tolist() if v > -1e8), scale)
        return out

    def watch_early(**given: Any) -> Any:
        if bool(given["is_sent_finished"].all()):
            is_far = given["early_stopping"] == "never" and given["length_penalty"] > 0
            length = given["max_length" if is_far else "cur_len"] - given["decoder_prompt_len"]
            scale = length ** given["length_penalty"]
            best = float(given["running_beam_scores"][0, 0]) / scale
            gaps.between(best, float(given["beam_scores"].min()), scale)
        return early(**given)

    with (
        mock.patch.object(GenerationMixin, "_get_top_k_continuations", watch_top),
        mock.patch.object(GenerationMixin, "_get_running_beams_for_next_iteration", watch_running),
        mock.patch.object(GenerationMixin, "_update_finished_beams", watch_update),
        mock.patch.object(GenerationMixin, "_check_early_stop_heuristic", staticmethod(watch_early)),
    ):
        yield


@contextmanager
def watched_groups(gaps: Gaps) -> Iterator[None]:
    """Report every decision of the old scorer to `gaps`."""
    process = scorer.BeamSearchScorer.process
    is_done = scorer.BeamHypotheses.is_done
    finalize = scorer.BeamSearchScorer.finalize

    def watch_process(self: Any, input_ids: Any, scores: Any, tokens: Any, *rest: Any, **given: Any) -> Any:
        ends = {int(i) for i in given["eos_token_id"]}
        taken = self.group_size + sum(int(t) in ends for t in tokens[0])
        gaps.order(scores[0].tolist()[: taken + 1])
        return process(self, input_ids, scores, tokens, *rest, **given)

    def watch_done(self: Any, best: float, cur_len: int, prompt_len: int = 0) -> bool:
        if len(self) == self.num_beams and self.early_stopping is not True:
            is_far = self.early_stopping == "never" and self.length_penalty > 0
            length = (self.max_length if is_far else cur_len) - prompt_len
            gaps.between(best / length**self.length_penalty, self.worst_score)
        return bool(is_done(self, best, cur_len, prompt_len))

    def watch_finalize(self: Any, *args: Any, **given: Any) -> Any:
        out = finalize(self, *args, **given)
        gaps.order(score for hyps in self._beam_hyps for score, *_ in hyps.beams)
        return out

    with (
        mock.patch.object(scorer.BeamSearchScorer, "process", watch_process),
        mock.patch.object(scorer.BeamHypotheses, "is_done", watch_done),
        mock.patch.object(scorer.BeamSearchScorer, "finalize", watch_finalize),
    ):
        yield


def seeded_multinomial(seed: int, prompt_length: int, gaps: Gaps) -> Any:
    """torch.multinomial without replacement for one row, by our draws; call number t reads position prompt + t - 1."""
    steps = itertools.count(prompt_length - 1)

    def multinomial(probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        position = next(steps)
        keys = [seed] * num_samples, [0] * num_samples, [position] * num_samples, [Purpose.BEAM_GUMBEL] * num_samples
        noise = uniforms(*keys, lane=np.arange(num_samples)).tolist()
        weights = probs[0].numpy()
        possible = np.flatnonzero(weights > 0)
        drawn = possible[draw_without_replacement(weights[possible], noise)]
        if len(drawn) < num_samples:  # the filters leave too few: transformers would take excluded ones
            gaps.between(0, 0)
            return torch.arange(num_samples)[None]
        watch_draws(weights.astype(np.float64), drawn, noise, gaps)
        return torch.from_numpy(drawn)[None]

    return multinomial


def watch_draws(weights: np.ndarray, drawn: np.ndarray, noise: list[float], gaps: Gaps) -> None:
    """How close each uniform came to a border of the interval it fell into (times 500: 2e-6 is far for those)."""
    left = weights.copy()
    for index, uniform in zip(drawn, noise, strict=True):
        ends = left.cumsum() / left.sum()
        start = ends[index - 1] if index else 0.0
        assert start <= uniform <= ends[index]
        gaps.between(500 * uniform, 500 * start)
        gaps.between(500 * uniform, 500 * ends[index])
        left[index] = 0


def cut(ids: list[int], eos_ids: Iterable[int], *, with_eos: bool) -> list[int]:
    """Up to the first EOS."""
    ends = [i for i, token in enumerate(ids) if token in set(eos_ids)]
    return ids[: ends[0] + with_eos] if ends else ids


def generate(model: Any, spec: TinySpec, prompt_ids: list[int], options: dict[str, Any]) -> dict[str, Any] | None:
    """The sequences and scores of one run, or None where it was too close."""
    gaps = Gaps()
    given = dict(options)
    seed = given.pop("seed", 0)
    if options.get("do_sample"):
        given.setdefault("top_k", 0)  # generate's own default is 50
    input_ids = torch.tensor([prompt_ids])
    multinomial = seeded_multinomial(seed, len(prompt_ids), gaps)
    with watched_beams(gaps), watched_groups(gaps), mock.patch.object(torch, "multinomial", multinomial):
        out = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=NEW_TOKENS,
            eos_token_id=list(spec.eos_token_ids),
            pad_token_id=spec.eos_token_ids[0],
            return_dict_in_generate=True,
            output_scores=True,
            **given,
        )
    if gaps.smallest < MIN_GAP:
        return None
    is_group = "num_beam_groups" in options
    sequences = [
        cut(ids, spec.eos_token_ids, with_eos=not is_group) for ids in out.sequences[:, len(prompt_ids) :].tolist()
    ]
    scores = [round(score, 5) for score in out.sequences_scores.tolist()]
    return {"options": options, "sequences": sequences, "scores": scores, "min_gap": round(gaps.smallest, 6)}


def beam_options() -> Iterator[dict[str, Any]]:
    penalties, stops = (0.0, 0.6, 1.0, 2.0, -0.5), (False, True, "never")
    for number, (alpha, early) in enumerate(itertools.product(penalties, stops)):
        num_beams = 2 + number % 4
        yield {
            "num_beams": num_beams,
            "num_return_sequences": 1 + number % num_beams,
            "length_penalty": alpha,
            "early_stopping": early,
            **PROCESSORS[number % 3 if number < 12 else 3],
        }


def sample_options() -> Iterator[dict[str, Any]]:
    for number in range(2 * len(SAMPLERS)):
        num_beams = 2 + number % 4
        yield {
            "do_sample": True,
            "num_beams": num_beams,
            "num_return_sequences": 1 + number % num_beams,
            "seed": 1000 + number,
            "length_penalty": (1.0, 0.0, 0.6)[number % 3],
            "early_stopping": (False, True, "never")[number % 3],
            **SAMPLERS[number // 2],
        }


def group_options() -> Iterator[dict[str, Any]]:
    shapes = ((4, 2), (6, 3), (4, 4), (2, 2), (6, 2))
    for number, (num_beams, num_groups) in enumerate(shapes):
        yield {
            "num_beams": num_beams,
            "num_beam_groups": num_groups,
            "num_return_sequences": (num_beams, 2, 3, 1, 4)[number],
            "diversity_penalty": (0.7, 2.0, 0.5, 5.0, 1.0)[number],
            "length_penalty": (1.0, 0.0, 0.6, 1.0, -0.5)[number],
            "early_stopping": (False, True, "never", True, False)[number],
            **PROCESSORS[number % 4],
        }


def runs(model: Any, spec: TinySpec, prompt_ids: list[int]) -> list[dict[str, Any]]:
    options = (*beam_options(), *sample_options(), *group_options())
    found = [generate(model, spec, prompt_ids, given) for given in options]
    return [run for run in found if run is not None]


def model_entry(spec: TinySpec) -> dict[str, Any]:
    model = build(spec)
    generator = torch.Generator().manual_seed(100 + spec.seed)
    prompts = []
    for number in range(NUM_PROMPTS):
        prompt_ids = torch.randint(0, VOCAB, (1 + 13 * number % 40,), generator=generator).tolist()
        prompts.append({"prompt_token_ids": prompt_ids, "runs": runs(model, spec, prompt_ids)})
    kept = [run for prompt in prompts for run in prompt["runs"]]
    lengths = [len(ids) for run in kept for ids in run["sequences"]]
    ended = sum(length < NEW_TOKENS for length in lengths)
    print(f"{spec.model_type}: {len(kept)} runs kept, {ended} of {len(lengths)} sequences ended by EOS", flush=True)
    return {
        "model_type": spec.model_type,
        "config": spec.config,
        "seed": spec.seed,
        "eos_token_ids": spec.eos_token_ids,
        "weights_sha256": weights_sha256(model),
        "prompts": prompts,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    specs = (*TINY_SPECS, *(dataclasses.replace(spec, eos_token_ids=MANY_EOS) for spec in TINY_SPECS))
    write("beams.json", {"max_new_tokens": NEW_TOKENS}, models=[model_entry(spec) for spec in specs])
