"""Whether every strategy says the same whatever runs beside it and wherever: a crowd of random requests, in float32.

Each alone on the device, together there (arriving, leaving and being preempted at random), and together on the CPU;
then together without recordings, and without forwards launched ahead. Tokens must be equal, numbers nearly so.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from decoding.contract.params import CotDecoding, Request
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.graphs import CannotCapture, Capture, CudaCapture, Run
from decoding.model.loading import wrap
from decoding.model.model import Model
from decoding.seam import Finish
from loadtest.gpu_accept.report import Check
from loadtest.gpu_accept.session import Session
from loadtest.gpu_accept.shapes import build
from tests.decoding.crowd import crowd_token_bytes, random_requests, run_crowd
from tests.decoding.drive import Answer, Choice
from tests.decoding.engines import make_engine

CPU = torch.device("cpu")
NUM_PAGES, FEW_PAGES = 400, 40
EOS = 3
TOLERANCE = 1e-2
"""Of log-probs and hidden states. With weights changed by a 3e-7th, as one device may round where another does not, no
token of 318 answers was another and no number differed by more."""

Answers = dict[int, Answer]


@dataclass(frozen=True, slots=True)
class Pair:
    """A model and its draft, both with pages. recordings: of small ticks, made by both."""

    main: Model
    draft: Model
    recordings: list[Run]

    def engine(self, num_pages: int, *, launches_ahead: bool) -> Engine:
        models = {"main": self.main, "draft": self.draft}
        return make_engine(
            models,
            {name: PageCache(num_pages, model.attention.page_size) for name, model in models.items()},
            eos_token_ids=(EOS,),
            token_bytes=crowd_token_bytes(self.main.info.vocab_size),
            max_rows=24,
            tick_tokens=64,
            launches_ahead=launches_ahead,
        )


def crowd(session: Session) -> Iterator[Check]:
    pair = pair_on(session.device)
    requests = requests_for(session.scale.crowd, pair.main.info.vocab_size)
    ahead = session.is_gpu
    together = _together(pair, requests, launches_ahead=ahead)
    names = sorted({request.strategy.NAME for request in requests})
    alone = _alone(pair, requests, together)
    yield _same("together as alone", requests, together, alone, f"of {len(names)} strategies")
    own = _together(pair_on(CPU), requests, launches_ahead=False)
    yield _same(f"on the {session.device.type} as on the CPU", requests, together, own)
    other = _together(pair, requests, launches_ahead=not ahead)
    yield _same("launched ahead as one by one", requests, together, other)
    if session.is_gpu:
        plain = _together(pair_on(session.device, refuse), requests, launches_ahead=ahead)
        detail = f"with {len(pair.recordings)} recordings"
        yield _same("recorded as not recorded", requests, together, plain, detail, must=bool(pair.recordings))


def pair_on(device: torch.device, capture: Capture | None = None) -> Pair:
    """Of the same weights everywhere. capture: None: by CUDA graphs on a GPU."""
    recordings: list[Run] = []
    main, draft = (_model(device, seed, capture, recordings) for seed in (0, 1))
    return Pair(main, draft, recordings)


def _model(device: torch.device, seed: int, capture: Capture | None, recordings: list[Run]) -> Model:
    if capture is None and device.type == "cuda":
        capture = _noting(CudaCapture(), recordings)
    model = wrap(build("peaked", CPU, torch.float32, seed=seed).to(device), capture=capture)
    model.attention.allocate(NUM_PAGES)
    return model


def _noting(capture: Capture, recordings: list[Run]) -> Capture:
    def record(run: Run) -> Run:
        recordings.append(capture(run))
        return recordings[-1]

    return record


def refuse(_run: Run) -> Run:
    """Stands for a capture where there are to be no recordings."""
    raise CannotCapture("it is told not to")


def requests_for(count: int, vocab: int) -> list[Request]:
    found = random_requests(random.Random(11), count, vocab)
    if importlib.util.find_spec("re2") is not None:
        return found
    return [_without_regex(request) for request in found]


def _without_regex(request: Request) -> Request:
    """What a box without the package re2 can serve."""
    if isinstance(request.strategy, CotDecoding):
        return replace(request, strategy=replace(request.strategy, answer_regex=None))
    return request


def _together(pair: Pair, requests: Sequence[Request], *, launches_ahead: bool) -> Answers:
    return run_crowd(pair.engine(FEW_PAGES, launches_ahead=launches_ahead), list(requests), random.Random(11))


def _alone(pair: Pair, requests: Sequence[Request], answers: Answers) -> Answers:
    found: Answers = {}
    for index in answers:
        engine = pair.engine(NUM_PAGES, launches_ahead=False)
        found |= {index: run_crowd(engine, [requests[index]], _Never())[0]}
    return found


class _Never(random.Random):
    """Of which no request is cancelled."""

    def random(self) -> float:
        return 0.49


def _same(
    name: str, requests: Sequence[Request], found: Answers, expected: Answers, detail: str = "", *, must: bool = True
) -> Check:
    """must: what else has to be so. Who was cancelled before the end differs with the number of ticks."""
    both = found.keys() & expected.keys()
    wrong = {at: reason for at in sorted(both) if (reason := difference(found[at], expected[at])) is not None}
    told = "; ".join(f"{requests[at].strategy.NAME} {at}: {reason}" for at, reason in list(wrong.items())[:4])
    equal = f"{len(both) - len(wrong)} of {len(both)} answers {detail}".strip()
    return Check(name, not wrong and bool(both) and must, f"{equal}; {told}" if told else equal)


def difference(one: Answer, other: Answer) -> str | None:
    """How two answers differ, beyond rounding."""
    failures = [answer.failure and answer.failure.code for answer in (one, other)]
    if failures[0] != failures[1]:
        return f"fails: {failures[0]}, {failures[1]}"
    if one.choices.keys() != other.choices.keys():
        return "other choices"
    for index, choice in one.choices.items():
        found = _choice_difference(choice, other.choices[index])
        if found is not None:
            return f"choice {index}: {found}"
    if not _near(one.vector, other.vector):
        return "another vector"
    prompts = [() if answer.prompt is None else answer.prompt.logprobs for answer in (one, other)]
    numbers = [tuple(0.0 if value is None else value for value in prompt) for prompt in prompts]
    return None if _near(*numbers) else "other log-probs of the prompt"


def _choice_difference(one: Choice, other: Choice) -> str | None:
    if one.token_ids != other.token_ids:
        at = next((i for i, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=False)) if a != b), -1)
        return f"other tokens from {at} on"
    if not _same_end(one.finish, other.finish):
        return f"ends by {one.finish}, {other.finish}"
    tops = [tuple(score for best in choice.top for _, score in best) for choice in (one, other)]
    is_near = _near(one.logprobs, other.logprobs) and _near(*tops)
    return None if is_near else "other log-probs"


def _same_end(one: Finish | None, other: Finish | None) -> bool:
    """Scores, and what a strategy tells of itself, may be rounded."""
    if one is None or other is None:
        return one is other
    if (one.reason, one.stop_reason) != (other.reason, other.stop_reason) or len(one.figures) != len(other.figures):
        return False
    pairs = [("score", one.score), *one.figures], [("score", other.score), *other.figures]
    return all(name == other_name and _same_figure(a, b) for (name, a), (other_name, b) in zip(*pairs, strict=True))


def _same_figure(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return _near([one], [other])
    return one == other


def _near(one: Sequence[float], other: Sequence[float]) -> bool:
    if len(one) != len(other):
        return False
    a, b = (torch.tensor(list(each), dtype=torch.float64) for each in (one, other))
    return bool(torch.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True).all())
