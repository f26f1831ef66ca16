"""Every form of log-softmax and top-k gives what torch's own two steps give, ties, masks and broken rows included."""

from __future__ import annotations

import ctypes
import functools
import math
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch

from decoding.kernels import cpu as kernels
from decoding.topk.plain import plain_topk
from decoding.topk.scores import RowScores, TopK, log_softmax_topk, topk
from tests.decoding.rounding_error import EPS, of_log_softmax, of_sum, ulp

INFINITY = float("inf")
FORMS = ["plain", "kernel", "triton"]


def form_named(name: str) -> TopK:
    """Triton interpreted, with segments so small that rows of the interpreter's size have several."""
    if name == "plain":
        return plain_topk
    if name == "kernel":
        if not kernels.available():
            pytest.skip("kernels cannot be compiled here")
        from decoding.topk.kernel import kernel_topk  # noqa: PLC0415 - needs numba

        return kernel_topk
    pytest.importorskip("triton")
    from decoding.topk.triton import triton_topk  # noqa: PLC0415 - needs triton

    return functools.partial(triton_topk, segment=128)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> TopK:
    return form_named(request.param)


def scored(form: TopK, z: torch.Tensor, k: int, *, normalises: bool = True) -> RowScores:
    return RowScores(z, *form(z, k, normalises))


def ranked(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle: a stable sort of everything."""
    order = scores.sort(dim=-1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def random(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 4


def is_ranked(found: RowScores, k: int) -> bool:
    """The best are those of the scores written out, to the bit, and in their order."""
    best, ids = ranked(found.whole(), k)
    return torch.equal(found.best, best) and torch.equal(found.ids, ids)


@pytest.mark.parametrize(
    ("name", "vocab"), [*((n, v) for n in FORMS[:2] for v in (16, 37, 1024, 3079)), ("triton", 300)]
)
def test_it_is_log_softmax_and_topk(name: str, vocab: int) -> None:
    form, z = form_named(name), random(3, vocab)
    logp = z.log_softmax(dim=-1)
    close = {"rtol": 0, "atol": 2 * of_log_softmax(float(logp.abs().max()), vocab)}  # both are rounded
    for k in (1, min(9, vocab)) if name == "triton" else (1, 2, min(40, vocab)):
        best, ids = logp.topk(k, dim=-1)
        found = scored(form, z, k)
        assert torch.equal(found.ids, ids)
        torch.testing.assert_close(found.best, best, **close)
        assert is_ranked(found, k)
    torch.testing.assert_close(scored(form, z, 0).whole(), logp, **close)


def test_as_many_as_the_whole_vocabulary_are_ranked_without_a_list_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the best moves those after it in the kernel's list, which for all ids of a real vocabulary took a second
    a row."""
    form, lists = form_named("kernel"), list[int]()
    from decoding.kernels.cpu.team import default_team  # noqa: PLC0415 - needs numba
    from decoding.kernels.cpu.topk import TOPK  # noqa: PLC0415 - needs numba

    team = default_team()

    def counted(kernel: int, record: int) -> None:
        lists.append(int(np.frombuffer((ctypes.c_char * TOPK.itemsize).from_address(record), TOPK)["k"][0]))
        team.run(kernel, record)

    monkeypatch.setattr("decoding.topk.kernel.default_team", lambda: types.SimpleNamespace(run=counted))
    z = random(2, 49152)
    for k in (512, 513, 49152):
        found = scored(form, z, k)
        assert found.best.shape == (2, k)
        assert is_ranked(found, k)
    assert lists == [512, 0, 0]


def test_without_kernels_it_is_torchs_log_softmax_to_the_bit() -> None:
    z = random(5, 1031)
    assert torch.equal(scored(plain_topk, z, 0).whole(), z.log_softmax(dim=-1))


def test_a_row_of_a_real_vocabulary_agrees() -> None:
    z = random(3, 49152)
    logp = z.log_softmax(dim=-1)
    found = log_softmax_topk(z, 20)
    assert torch.equal(found.ids, logp.topk(20, dim=-1).indices)
    exact = z.double().log_softmax(dim=-1)
    assert (found.whole().double() - exact).abs().max() <= of_log_softmax(float(exact.abs().max()), z.shape[1])
    assert is_ranked(found, 20)


def test_among_equals_the_lower_id_comes_first_also_at_the_border(form: TopK) -> None:
    z = torch.zeros(3, 300)
    z[0, [290, 10]] = 2.0
    z[1, [5, 250, 295]] = torch.tensor([1.0, 3.0, 1.0])
    z[2, ::2] = -0.0
    found = scored(form, z, 3)
    assert found.ids.tolist() == [[10, 290, 0], [250, 5, 295], [0, 1, 2]]
    assert is_ranked(found, 3)


def test_logits_that_round_to_one_log_prob_are_equals(form: TopK) -> None:
    """Beside a peak of 1e6 a float32 log-prob has steps of 1/16: ranked by logits, ids would come in another order."""
    z = random(3, 290)
    z[:, 200] = torch.tensor([1e6, 3e4, 1e6])
    z[2, 100:150] = 8.0
    for k in (2, 9):
        assert is_ranked(scored(form, z, k), k)


def test_order_and_size_of_the_scores_do_not_matter(form: TopK) -> None:
    """Each better than all before: every score joins the best, and every block raises the peak."""
    z = torch.stack((torch.linspace(-1e4, 1e4, 290), torch.linspace(90, -90, 290), torch.full((290,), -3e38)))
    assert is_ranked(scored(form, z, 5), 5)
    log_total = of_sum(290) + 2 * EPS + ulp(math.log(290))  # and two differences, relative to what they leave
    close = {"rtol": 2 * EPS, "atol": 2 * log_total}
    torch.testing.assert_close(scored(form, z, 0).whole(), z.log_softmax(dim=-1), **close)


def test_excluded_scores_come_last_by_id(form: TopK) -> None:
    z = torch.full((3, 200), -INFINITY)
    z[0, [150, 70]] = torch.tensor([1.0, 2.0])
    z[1, 199] = 0.0
    found = scored(form, z[:2], 4)
    assert found.ids.tolist() == [[70, 150, 0, 1], [199, 0, 1, 2]]
    assert found.best[1].tolist() == [0, -INFINITY, -INFINITY, -INFINITY]
    untouched = scored(form, z, 4, normalises=False)
    assert untouched.ids.tolist() == [[70, 150, 0, 1], [199, 0, 1, 2], [0, 1, 2, 3]]
    assert torch.equal(untouched.best, ranked(z, 4)[0])


def test_scores_that_are_not_to_be_normalised_come_out_as_they_are(form: TopK) -> None:
    z = random(4, 333)
    found = scored(form, z, 7, normalises=False)
    assert torch.equal(found.whole(), z)
    assert is_ranked(found, 7)


@pytest.mark.parametrize("broken", [float("nan"), INFINITY])
def test_a_row_that_is_not_finite_harms_no_other_and_its_ids_exist(form: TopK, broken: float) -> None:
    z = random(3, 290)
    sound = scored(form, z, 6)
    z[1, 77] = broken
    z[1, 288] = broken
    found = scored(form, z, 6)
    for part in ("best", "ids", "peak", "log_total"):
        mine, other = getattr(found, part), getattr(sound, part)
        assert torch.equal(mine[[0, 2]], other[[0, 2]])
    assert not found.log_total[1].isfinite() or not found.peak[1].isfinite()
    assert 0 <= int(found.ids.min()) <= int(found.ids.max()) < 290


def test_a_rows_bits_depend_on_no_neighbour_and_not_on_k(form: TopK) -> None:
    z = random(4, 290)
    together = scored(form, z, 5)
    for row in (0, 3):
        alone = scored(form, z[row : row + 1], 2)
        assert torch.equal(alone.best[0], together.best[row, :2])
        assert torch.equal(alone.ids[0], together.ids[row, :2])
        assert torch.equal(alone.whole()[0], together.row(row))


def test_single_scores_are_those_of_whole_rows() -> None:
    found = log_softmax_topk(random(4, 99), 3)
    whole, ids = found.whole(), torch.tensor([[1, 98], [0, 5], [7, 7], [50, 2]])
    assert torch.equal(found.gather(ids), whole.gather(1, ids))
    assert torch.equal(found.at(2, ids[0]), whole[2, ids[0]])
    assert torch.equal(found.at(torch.tensor([3, 1]), torch.tensor([4, 6])), whole[[3, 1], [4, 6]])
    assert torch.equal(found.row(3), whole[3])


@pytest.mark.parametrize("best_of", [log_softmax_topk, topk])
def test_the_best_of_more_than_the_vocabulary_is_the_vocabulary(
    best_of: Callable[[torch.Tensor, int], RowScores],
) -> None:
    assert best_of(torch.tensor([[1.0, 3.0, 2.0]]), 9).ids.tolist() == [[1, 2, 0]]
    assert best_of(random(2, 12), 99).ids.shape == (2, 12)


def test_more_than_a_program_can_keep_is_ranked_all_the_same() -> None:
    form = form_named("triton")
    assert is_ranked(scored(form, random(2, 300), 200), 200)


@pytest.mark.parametrize(("vocab", "expected"), [(128256, 4), (262144, 5), (50257, 2), (5, 1)])
def test_every_size_that_is_compiled_can_be_compiled_ahead(vocab: int, expected: int) -> None:
    """At the start, so that nobody who asks for many of the best waits for a compiler."""
    pytest.importorskip("triton")
    from decoding.topk import triton as launches  # noqa: PLC0415 - needs triton

    widths = launches.widths_compiled(vocab)
    segments = -(-vocab // launches.SEGMENT)
    sizes = {launches._lanes(segments, k + 1) for k in range(1, min(launches.MOST, vocab) + 1)}
    assert {launches._lanes(segments, k + 1) for k in widths} == sizes
    assert len(widths) == len(sizes) == expected
