"""Products of int8 and int4 weights: right, bitwise the same in any company; only the rounding of weights is lost."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("numba")

from decoding.kernels.cpu.panels import PanelLinear
from decoding.kernels.cpu.rounding import GROUP, LARGEST_INPUT, input_limit, round_groups, round_weight
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
    """Norms. A row's inputs are rounded to whole numbers of a step, so off by a root mean square of step / sqrt(12):
    four times that, and what float32 sums round, with the bias.
    """
    limit = input_limit(round_weight(weight)[0]) if form is Format.INT8 else LARGEST_INPUT
    step = x.abs().amax(dim=1) / limit
    return 4 * step / math.sqrt(12) * weight.norm() + of_product(x, weight, bias).norm(dim=1)


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
    # two scales, their product and that with a sum of whole numbers are rounded
    torch.testing.assert_close(
        linear(x), torch.tensor([[-21.0], [21.0]]).expand(2, 16) * depth, rtol=4 * EPS / 2, atol=0
    )


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
def test_what_is_not_finite_stays_visible(odd: float, form: Format) -> None:
    x = torch.ones(2, 16)
    x[1, 3] = odd
    out = PanelLinear(torch.ones(16, 16), None, Team(1), form)(x)
    assert out[0].isfinite().all()
    assert not out[1].isfinite().any()
