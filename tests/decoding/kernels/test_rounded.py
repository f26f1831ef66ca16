"""Products of int8 and int4 weights: bitwise what their definition says, and a row is the same in any company."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from decoding.kernels.cpu.panels import PanelLinear
from decoding.kernels.cpu.rounding import GROUP, LARGEST_INPUT, round_groups, round_weight
from decoding.kernels.cpu.team import Team
from decoding.kernels.cpu.tile import Format
from tests.decoding.rounding_error import EPS, of_product

FORMS = (Format.INT8, Format.INT4)
of_each_form = pytest.mark.parametrize("form", FORMS)


def rounded(weight: torch.Tensor, form: Format) -> torch.Tensor:  # [columns, depth]
    if form is Format.INT4:
        padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % GROUP))
        return round_groups(padded).weight()[:, : weight.shape[1]]
    numbers, scales = round_weight(weight)
    return numbers * scales


def rounding_error(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, form: Format) -> torch.Tensor:  # [rows]
    """Norms. A group's inputs are rounded to whole numbers of a step, so off by a root mean square of step / sqrt(12):
    four times that, and what float32 sums round, with the bias.
    """
    padding = (0, -x.shape[1] % form.depth)
    inputs, weights = (torch.nn.functional.pad(each, padding).view(len(each), -1, form.depth) for each in (x, weight))
    steps = inputs.abs().amax(dim=2) / LARGEST_INPUT  # [rows, groups]
    sizes = weights.square().sum((0, 2))
    return 4 / math.sqrt(12) * (steps.square() @ sizes).sqrt() + of_product(x, weight, bias).norm(dim=1)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c for float32, rounded once: the float64 sum is rounded to odd, so that rounding it again is exact."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    of_c = total - product
    lost = (product - (total - of_c)) + (c - of_c)
    is_even = total.view(np.int64) % 2 == 0
    odd = np.where((lost != 0) & is_even, np.nextafter(total, np.where(lost > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)


def emulated(x: torch.Tensor, weight: torch.Tensor, form: Format) -> np.ndarray:  # [T, K], [N, K] -> [T, N]
    """Whole numbers added up in int64, groups one after the other in float32."""
    padding = (0, -x.shape[1] % form.depth)
    rows = torch.nn.functional.pad(x, padding).numpy().reshape(len(x), -1, form.depth)
    tops = np.maximum(np.abs(rows).max(2), np.float32(1e-30))
    wholes = np.rint(rows * (np.float32(127) / tops)[:, :, None]).astype(np.int64)
    scales = tops / np.float32(127)
    padded = torch.nn.functional.pad(weight, padding)
    numbers, columns = round_weight(weight)
    groups = round_groups(padded) if form is Format.INT4 else None
    of_weight = groups.whole if groups else torch.nn.functional.pad(numbers, padding)
    factors = of_weight.numpy().reshape(len(weight), -1, form.depth).astype(np.int64)
    found = np.zeros((len(x), len(weight)), np.float32)
    for g in range(rows.shape[1]):
        part = (wholes[:, g] @ factors[:, g].T).astype(np.float32)
        if groups:
            least, scale = (each[:, g, 0].float().numpy()[None] for each in (groups.leasts, groups.scales))
            part = fused(scale, part, least * wholes[:, g].sum(1)[:, None].astype(np.float32))
        found = fused(scales[:, g, None], part, found)
    return found if groups else found * columns.numpy().T


@of_each_form
@pytest.mark.parametrize(("columns", "depth"), [(96, 64), (33, 43), (17, 1), (48, 80), (64, 577)])
def test_a_product_is_bitwise_that_of_whole_numbers(columns: int, depth: int, form: Format) -> None:
    weight, x = torch.randn(columns, depth), torch.randn(70, depth) * torch.logspace(-3, 3, 70)[:, None]
    x[3, : depth // 2], x[4], x[5, 0] = 0, 0, 1e4
    x[6] = torch.where(torch.randn(depth) > 0, 1.0, -1.0)  # every one the largest of its group
    weight[2], weight[3] = torch.where(torch.randn(2, depth) > 0, 1.0, -1.0)
    expected = torch.from_numpy(emulated(x, weight, form))
    linear = PanelLinear(weight, None, Team(2), form)
    assert torch.equal(linear(x), expected)
    for rows in range(1, 14):
        assert torch.equal(linear(x[:rows]), expected[:rows]), rows


@of_each_form
@pytest.mark.parametrize(("columns", "depth"), [(96, 64), (33, 43), (17, 1), (576, 1536)])
def test_a_product_is_that_of_the_rounded_weight_and_a_row_is_the_same_in_any_company(
    columns: int, depth: int, form: Format
) -> None:
    weight, bias = torch.randn(columns, depth), torch.randn(columns)
    linear = PanelLinear(weight, bias, Team(1), form)
    x = torch.randn(130, depth) * torch.logspace(-3, 3, 130)[:, None]
    whole = linear(x)
    expected = x.double() @ rounded(weight, form).double().T
    assert ((whole - bias - expected).norm(dim=1) <= rounding_error(x, rounded(weight, form), bias, form)).all()
    for rows in (1, 2, 3, 4, 5, 6, 7, 13, 48, 49, 97):
        assert torch.equal(linear(x[:rows]), whole[:rows]), rows
        assert torch.equal(linear(x[130 - rows :]), whole[130 - rows :]), rows


@of_each_form
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_the_number_of_threads_changes_no_bit(rows: int, form: Format) -> None:
    weight, x = torch.randn(320, 96), torch.randn(rows, 96)
    alone = PanelLinear(weight, None, Team(1), form)(x)
    for threads in (2, 5):
        linear = PanelLinear(weight, None, Team(threads), form)
        assert all(torch.equal(linear(x), alone) for _ in range(20))


@of_each_form
def test_the_largest_sums_there_can_be_do_not_overflow(form: Format) -> None:
    depth = 4096
    linear = PanelLinear(torch.full((16, depth), -3.0), None, Team(1), form)
    x = torch.stack([torch.full((depth,), 7.0), torch.full((depth,), -7.0)])
    expected = torch.tensor([[-21.0], [21.0]]).expand(2, 16) * depth
    groups = depth // form.depth  # a sum of as many; two scales and their products are rounded, too
    torch.testing.assert_close(linear(x), expected, rtol=(groups + 4) * EPS / 2, atol=0)


def test_a_rounded_weight_is_rounded_to_itself() -> None:
    numbers, scales = round_weight(torch.randn(50, 70))
    assert numbers.abs().amax(1).eq(127).all()
    assert torch.equal(round_weight(numbers * scales)[0], numbers)


def test_rounded_groups_are_rounded_to_themselves() -> None:
    weight = torch.randn(50, 96) * torch.logspace(-3, 1, 50)[:, None]
    weight[7], weight[8, :GROUP] = 0, 2.5
    groups = round_groups(weight)
    again = round_groups(groups.weight())
    assert torch.equal(again.whole, groups.whole)
    assert torch.equal(again.weight(), groups.weight())
    spread = weight.view(50, -1, GROUP).amax(2) - weight.view(50, -1, GROUP).amin(2)
    error = (groups.weight() - weight).view(50, -1, GROUP).abs().amax(2)
    assert (error <= spread / 30 + weight.abs().amax() * 2**-11).all()
    assert groups.whole[9:].amax(2).eq(15).all()


@of_each_form
def test_rows_and_columns_of_zeros_give_zeros(form: Format) -> None:
    weight = torch.randn(16, 32)
    weight[3] = 0
    out = PanelLinear(weight, None, Team(1), form)(torch.stack([torch.zeros(32), torch.ones(32)]))
    assert not out[0].any()
    assert out[1].count_nonzero() == 15


@of_each_form
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [3, 100, 175])
def test_what_is_not_finite_stays_visible(at: int, odd: float, form: Format) -> None:
    x = torch.ones(3, 176)
    x[1, at] = odd
    out = PanelLinear(torch.ones(16, 176), None, Team(1), form)(x)
    assert out[[0, 2]].isfinite().all()
    assert not out[1].isfinite().any()
