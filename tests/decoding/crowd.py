"""A crowd of random requests of every strategy, and a run in which they arrive, leave and get preempted at random."""

from __future__ import annotations

import random
from collections.abc import Callable

from decoding.check.table_model import DraftTableModel
from decoding.check.table_model import table_token_bytes as crowd_token_bytes
from decoding.contract.params import (
    Adapt,
    Assisted,
    Beam,
    BeamSample,
    BestFirst,
    BestOf,
    ContextAware,
    Contrastive,
    ContrastiveDecoding,
    CotDecoding,
    Dexperts,
    Dola,
    Edt,
    Ensemble,
    Entropix,
    GroupBeam,
    Guided,
    KlGuided,
    LogitsParams,
    LogprobsParams,
    Pmi,
    Pooling,
    PromptLookup,
    Request,
    Sampling,
    Sed,
    StoppingParams,
    StrategyParams,
)
from decoding.engine.engine import Engine
from decoding.strategies import build
from tests.decoding.drive import Answer

__all__ = ["MAKERS", "DraftTableModel", "crowd_token_bytes", "random_requests", "run_crowd"]

Make = Callable[[random.Random, int], StrategyParams]

FREELY_HEATED = (Sampling, BestOf, Dola, PromptLookup, Assisted, BeamSample)
"""Strategies that leave the temperature to the pipeline, so that it may be a dynamic one."""

NEVER_DRAWING = (GroupBeam, BestFirst, Contrastive, CotDecoding, Sed, Pooling)


def _ids(rng: random.Random, vocab: int, most: int) -> tuple[int, ...]:
    return tuple(rng.randrange(vocab) for _ in range(rng.randrange(1, most + 1)))


def _beams(rng: random.Random) -> tuple[int, int]:
    """n and num_beams."""
    num_beams = rng.randrange(1, 5)
    return rng.randrange(1, num_beams + 1), num_beams


def _best_of(rng: random.Random, vocab: int) -> BestOf:
    best_of = rng.randrange(2, 5)
    return BestOf(rng.randrange(1, best_of + 1), best_of, rng.choice(["mean", "sum"]))


def _beam(rng: random.Random, vocab: int) -> Beam:
    return Beam(
        *_beams(rng),
        length_penalty=rng.choice([1.0, 0.0, 2.0, -0.5]),
        length_penalty_type=rng.choice(["hf", "gnmt"]),
        coverage_penalty=rng.choice([0.0, 0.0, 0.2]),
        early_stopping=rng.choice([False, True, "never"]),
        prune=rng.choice([None, None, 1.0]),
    )


def _beam_sample(rng: random.Random, vocab: int) -> BeamSample:
    return BeamSample(*_beams(rng), rng.choice([1.0, 0.6]), early_stopping=rng.choice([False, True, "never"]))


def _group_beam(rng: random.Random, vocab: int) -> GroupBeam:
    groups, size = rng.choice([(2, 1), (2, 2), (4, 1), (1, 3)])
    num_beams = groups * size
    return GroupBeam(rng.randrange(1, num_beams + 1), num_beams, groups, rng.choice([0.0, 0.5, 2.0]))


def _best_first(rng: random.Random, vocab: int) -> BestFirst:
    num_beams = rng.randrange(1, 4)
    return BestFirst(rng.randrange(1, num_beams + 1), num_beams, rng.choice([0.0, 1.0]))


def _cot_decoding(rng: random.Random, vocab: int) -> CotDecoding:
    k = rng.randrange(1, 5)
    return CotDecoding(
        k,
        branch_at=rng.choice([0, 0, 2]),
        aggregate=rng.random() < 0.5,
        answer_regex=rng.choice([None, "[a-f]+"]),
        suffix_ids=rng.choice([(), _ids(rng, vocab, 3)]),
        span=rng.choice(["answer", "all"]),
        max_answer=rng.randrange(1, 5),
        n=rng.randrange(1, k + 1),
    )


def _sed(rng: random.Random, vocab: int) -> Sed:
    return Sed(
        _ids(rng, vocab, 4),
        yes_id=4,
        no_id=5,
        k=rng.randrange(2, 4),
        delta_ratio=rng.choice([0.5, 0.9]),
        min_probability=rng.choice([0.0, 0.2]),
        eval_before=rng.choice([(), _ids(rng, vocab, 6)]),
        delta_entropy=rng.choice([None, 2.5]),
        alpha=rng.choice([0.5, 1.0]),
        max_rollout=rng.randrange(1, 8),
        max_points=rng.randrange(4),
    )


def _entropix(rng: random.Random, vocab: int) -> Entropix:
    return Entropix(
        rng.choice([None, 7]), compat=rng.random() < 0.3, uses_attention=rng.random() < 0.7,
        high_varentropy=rng.choice([0.5, 5.0]), high_entropy=rng.choice([2.0, 5.0]),
    )  # fmt: skip


def _dola(rng: random.Random, vocab: int) -> Dola:
    return Dola(rng.choice([(1,), (0, 2), (0, 1, 2)]), rng.choice([1, 1, 2]), rng.choice([0.1, 0.1, 0.5]))


def _assisted(rng: random.Random, vocab: int) -> Assisted:
    num_tokens = rng.randrange(1, 7)
    return Assisted(num_tokens, rng.choice(["constant", "heuristic"]), rng.choice([0.0, 0.4]), rng.choice([1, 1, 2]))


def _contrastive_decoding(rng: random.Random, vocab: int) -> ContrastiveDecoding:
    return ContrastiveDecoding(
        "draft", rng.choice([0.1, 0.01, 0.5]), rng.choice([None, 0.5]), rng.choice([1.0, 0.5]), rng.choice([1, 1, 2])
    )


def _dexperts(rng: random.Random, vocab: int) -> Dexperts:
    return Dexperts(*rng.choice([("draft", "main"), ("main", "draft")]), rng.choice([1.0, 0.5]), rng.choice([1, 1, 2]))


MAKERS: dict[str, Make] = {
    Sampling.NAME: lambda rng, vocab: Sampling(rng.choice([1, 1, 1, 2, 3, 4])),
    BestOf.NAME: _best_of,
    Beam.NAME: _beam,
    BeamSample.NAME: _beam_sample,
    GroupBeam.NAME: _group_beam,
    BestFirst.NAME: _best_first,
    Contrastive.NAME: lambda rng, vocab: Contrastive(rng.choice([0.3, 0.6, 1.0]), rng.randrange(1, 5)),
    Dola.NAME: _dola,
    Guided.NAME: lambda rng, vocab: Guided(rng.choice([0.5, 1.5]), _ids(rng, vocab, 6), rng.choice([1, 1, 2])),
    KlGuided.NAME: lambda rng, vocab: KlGuided(rng.choice([0.5, 2.0]), _ids(rng, vocab, 6), rng.choice([1, 1, 2])),
    ContextAware.NAME: lambda rng, vocab: ContextAware(
        _ids(rng, vocab, 6), rng.choice([0.5, 1]), rng.choice([1, 1, 2])
    ),
    Pmi.NAME: lambda rng, vocab: Pmi(_ids(rng, vocab, 6), 0.5, rng.choice([0.0, 2.0]), rng.choice([1, 1, 2])),
    ContrastiveDecoding.NAME: _contrastive_decoding,
    Dexperts.NAME: _dexperts,
    Ensemble.NAME: lambda rng, vocab: Ensemble(("draft",), rng.choice([(), (0.3, 0.9)]), rng.choice([1, 1, 2])),
    Entropix.NAME: _entropix,
    CotDecoding.NAME: _cot_decoding,
    Sed.NAME: _sed,
    PromptLookup.NAME: lambda rng, vocab: PromptLookup(rng.randrange(1, 7), rng.randrange(1, 4), rng.choice([1, 1, 2])),
    Assisted.NAME: _assisted,
    Pooling.NAME: lambda rng, vocab: Pooling(rng.choice(["mean", "last"])),
}


def random_requests(rng: random.Random, count: int, vocab: int, longest: int = 40) -> list[Request]:
    """Every strategy in turn, with all kinds of parameters; half of the prompts begin with one of three prefixes."""
    prefixes = [[rng.randrange(vocab) for _ in range(rng.randrange(8, longest))] for _ in range(3)]
    makers = list(MAKERS.values())
    strategies = [makers[i % len(makers)](rng, vocab) for i in range(count)]
    rng.shuffle(strategies)
    return [_random_request(rng, vocab, longest, prefixes, strategy) for strategy in strategies]


def _random_request(
    rng: random.Random, vocab: int, longest: int, prefixes: list[list[int]], strategy: StrategyParams
) -> Request:
    head = rng.choice(prefixes) if rng.random() < 0.5 else []
    own = [rng.randrange(vocab) for _ in range(rng.randrange(1, longest))]
    max_tokens = rng.randrange(1, 24) if rng.random() < 0.96 else 0
    return Request(
        prompt_ids=(*head, *own),
        strategy=strategy,
        logits=_logits(rng, vocab, strategy),
        stopping=StoppingParams(
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, 0, max_tokens // 2]),
            stop=rng.choice([(), (), (b"ab", b"4"), (b"\n  ",)]),
            stop_token_ids=rng.choice([(), (rng.randrange(vocab),)]),
            ignore_eos=rng.random() < 0.3,
        ),
        logprobs=LogprobsParams(
            output=rng.choice([None, 0, 3]),
            prompt=rng.choice([None, None, None, 2]),
            mode=rng.choice(["raw", "raw", "processed"]),
        ),
        seed=rng.randrange(2**63),
        cache_salt=rng.choice(["", "", "tenant"]),
        pause_ids=_ids(rng, vocab, 5) if rng.random() < 0.1 else (),
        trace=rng.random() < 0.2,
    )


def _logits(rng: random.Random, vocab: int, strategy: StrategyParams) -> LogitsParams:
    """Each step is off more often than on, so that all kinds of pipelines meet in a batch."""
    is_hot = not isinstance(strategy, NEVER_DRAWING)
    edt, adapt = _dynamic_temperature(rng) if isinstance(strategy, FREELY_HEATED) else (None, None)
    return LogitsParams(
        temperature=rng.choice([0.0, 0.0, 0.3, 1.0, 1.0, 1.7]) if is_hot else 0.0,
        top_k=rng.choice([0, 0, 1, 5, 20]),
        top_p=rng.choice([1.0, 1.0, 0.5, 0.9]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        top_n_sigma=rng.choice([0.0, 0.0, 0.0, 1.0]),
        typical_p=rng.choice([1.0, 1.0, 1.0, 0.9]),
        epsilon_cutoff=rng.choice([0.0, 0.0, 0.0, 0.01]),
        eta_cutoff=rng.choice([0.0, 0.0, 0.0, 0.01]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        repetition_penalty_scope=rng.choice(["prompt+output", "prompt+output", "output"]),
        repetition_penalty_window=rng.choice([0, 0, 5]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.7]),
        presence_penalty=rng.choice([0.0, 0.0, 0.4]),
        no_repeat_ngram_size=rng.choice([0, 0, 0, 2, 3]),
        bad_words=rng.choice(
            [(), (), ((rng.randrange(4, vocab),), (rng.randrange(4, vocab), rng.randrange(4, vocab)))]
        ),
        logit_bias=rng.choice([(), (), ((rng.randrange(vocab), 3.0),)]),
        allowed_token_ids=rng.choice([None, None, None, tuple(range(0, vocab, 2))]),
        eos_penalty=rng.choice([0.0, 0.0, 0.5]),
        eos_penalty_until=rng.choice([0, 8]),
        exponential_decay_length_penalty=rng.choice([None, None, None, (3, 1.2)]),
        lz_penalty=rng.choice([0.0, 0.0, 0.0, 0.3]),
        lz_scope=rng.choice(["output", "prompt+output"]),
        lz_buffer=rng.choice([32, 4]),
        lz_window=rng.choice([512, 16]),
        sampler_order=rng.choice(["hf", "vllm"]),
        min_tokens_to_keep=rng.choice([1, 1, 2]),
        edt=edt,
        adapt=adapt,
    )


def _dynamic_temperature(rng: random.Random) -> tuple[Edt | None, Adapt | None]:
    kind = rng.random()
    if kind < 0.15:
        return Edt(rng.choice([0.5, 2.0]), rng.choice([0.8, 0.5])), None
    if kind < 0.3:
        return None, Adapt(rng.choice([0.8, 1.5]), rng.choice([0.0, 0.4]), first_token=rng.random() < 0.5)
    return None, None


def run_crowd(engine: Engine, requests: list[Request], rng: random.Random) -> dict[int, Answer]:
    """Requests arrive in bursts between ticks and one in eight is cancelled at some random moment.

    Returns the answers of the others, by index. The books are checked after every tick and must be empty at the end.
    """
    answers = {i: Answer() for i in range(len(requests))}
    coming = list(range(len(requests)))
    doomed = {i: rng.randrange(1, 12) for i in coming if rng.random() < 0.125}
    age: dict[int, int] = {}
    while coming or engine.has_work:
        while coming and (rng.random() < 0.5 or not engine.has_work):
            index = coming.pop(0)
            engine.add(index, requests[index], build)
            age[index] = 0
        for output in engine.tick():
            answers[output.request_id].take(output)
        for index in list(age):
            age[index] += 1
            if doomed.get(index) == age[index]:
                engine.cancel(index)
                del answers[index]
        engine.check_integrity()
        assert not [w for live in engine.scheduler.waiting for w in live.works if w.row.table.pages]
    assert engine.used_pages == 0
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    finished = {i: a for i, a in answers.items() if a.usage is not None}
    assert set(answers) - set(finished) == set()
    return finished
