"""N-gram lookup against a search by hand, rejection sampling against its definition, schedules."""

from __future__ import annotations

import random

import pytest
import torch

from decoding.strategies.parts.drafting import WIDEST_GROWN, DraftLength, Ngrams, num_accepted, num_matching, residual
from tests.decoding.rounding_error import EPS, of_sum, ulp


def looked_up(ids: list[int], max_ngram: int, num_tokens: int, eos: tuple[int, ...]) -> tuple[int, ...]:
    """Hugging Face's rule spelled out: the largest n first, the left-most window, whatever follows it."""
    for n in range(min(max_ngram, len(ids) - 1), 0, -1):
        for at in range(len(ids) - n):
            if ids[at : at + n] == ids[-n:]:
                chosen = ids[at + n : at + n + num_tokens]
                ends = [i for i, token in enumerate(chosen) if token in eos]
                return tuple(chosen[: ends[0]] if ends else chosen)
    return ()


def test_lookup_equals_a_search_by_hand() -> None:
    rng = random.Random(2)
    num_found = 0
    for _ in range(2000):
        ids = [rng.randrange(rng.choice([2, 5, 30])) for _ in range(rng.randrange(1, 60))]
        max_ngram, num_tokens, eos = rng.randrange(1, 6), rng.randrange(1, 12), rng.choice([(), (1,)])
        proposed = Ngrams(ids, max_ngram).propose(num_tokens, eos)
        assert proposed == looked_up(ids, max_ngram, num_tokens, eos), ids
        num_found += bool(proposed)
    assert num_found > 500
    for num_ids, max_ngram in ((40, 7), (40, 2**62), (1, 3)):
        assert Ngrams([5] * num_ids, max_ngram).propose(3, ()) == looked_up([5] * num_ids, max_ngram, 3, ())


def test_a_text_that_grew_is_looked_up_as_one_that_was_there_from_the_start() -> None:
    rng = random.Random(3)
    ids = [rng.randrange(4) for _ in range(500)]
    grown = Ngrams(ids[:1], 3)
    at = 1
    while at < len(ids):
        step = rng.randrange(1, 9)
        grown.extend(ids[at : at + step])
        at = min(at + step, len(ids))
        assert grown.propose(5, ()) == Ngrams(ids[:at], 3).propose(5, ())


@pytest.mark.parametrize(
    ("drafts", "drawn", "expected"),
    [((1, 2, 3), (1, 2, 3, 4), 3), ((1, 2, 3), (1, 9, 3, 4), 1), ((1,), (2, 2), 0), ((), (5,), 0)],
)
def test_matching_drafts_end_at_the_first_difference(
    drafts: tuple[int, ...], drawn: tuple[int, ...], expected: int
) -> None:
    assert num_matching(drafts, drawn) == expected


def test_a_draft_is_accepted_below_the_ratio_of_the_probabilities() -> None:
    half, quarter = -0.6931471805599453, -1.3862943611198906
    assert num_accepted((quarter,), (half,), (0.499,)) == 1
    assert num_accepted((quarter,), (half,), (0.501,)) == 0
    assert num_accepted((half,), (quarter,), (0.999,)) == 1
    assert num_accepted((-torch.inf,), (half,), (0.0,)) == 0
    assert num_accepted((half, quarter, half), (half, half, half), (0.9, 0.6, 0.1)) == 1


def test_draft_acceptance_and_residual_make_up_p_exactly() -> None:
    """Sum over drafts: q(x) min(1, p(x)/q(x)) + P(rejection) * residual(x) = p(x), also where masks exclude ids."""
    generator = torch.Generator().manual_seed(5)
    for masks in range(4):
        log_p, log_q = (torch.randn(50, generator=generator) * 2 for _ in range(2))
        if masks & 1:
            log_p[:20] = -torch.inf
        if masks & 2:
            log_q[10:30] = -torch.inf
        log_p, log_q = log_p.log_softmax(0), log_q.log_softmax(0)
        p, q = log_p.double().exp(), log_q.double().exp()
        kept = torch.minimum(p, q)
        replaced = (1 - kept.sum()) * residual(log_p, log_q).double().softmax(0)
        # what is left has the errors of two float32 probabilities and of a logarithm, the shares those of its sum
        error = 2 * EPS + ulp(float(log_p[log_p.isfinite()].abs().max())) + of_sum(50)
        torch.testing.assert_close(kept + replaced, p, atol=error, rtol=0)


def test_nothing_left_of_p_falls_back_to_p() -> None:
    log_p = torch.tensor([0.2, 0.8]).log()
    assert torch.equal(residual(log_p, log_p), log_p)


def test_the_constant_schedule_stays() -> None:
    assert DraftLength(5, "constant").after(5, 5) == DraftLength(5, "constant")


def test_the_heuristic_schedule_adds_two_or_takes_one() -> None:
    assert DraftLength(5, "heuristic").after(3, 3).num_tokens == 7
    assert DraftLength(5, "heuristic").after(3, 2).num_tokens == 4
    assert DraftLength(1, "heuristic").after(1, 0).num_tokens == 1


def test_a_growing_schedule_keeps_its_window_beside_decode_steps_unless_asked_for_more() -> None:
    assert DraftLength(30, "heuristic").after(30, 30).num_tokens == WIDEST_GROWN
    assert DraftLength(50, "heuristic").after(50, 50).num_tokens == 50
