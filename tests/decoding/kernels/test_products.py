"""Compiled linears: right, and bitwise the same for a row in any company, on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("numba")

from decoding.kernels.cpu.panels import PanelLinear, fits_bfloat16, pack
from decoding.kernels.cpu.team import Team
from decoding.kernels.cpu.tile import Format
from tests.decoding.rounding_error import of_product


def weights(columns: int, depth: int, form: Format) -> torch.Tensor:
    weight = torch.randn(columns, depth, generator=torch.Generator().manual_seed(columns))
    return weight.bfloat16().float() if form is Format.BFLOAT16 else weight


@pytest.mark.parametrize("form", [Format.FLOAT32, Format.BFLOAT16])
@pytest.mark.parametrize(("columns", "depth"), [(96, 64), (33, 40), (17, 1), (576, 1536)])
def test_a_product_is_right_and_a_row_is_the_same_in_any_company(form: Format, columns: int, depth: int) -> None:
    weight, bias = weights(columns, depth, form), torch.randn(columns)
    linear = PanelLinear(weight, bias, Team(1))
    x = torch.randn(130, depth)
    whole = linear(x)
    expected = x.double() @ weight.double().T + bias.double()
    assert ((whole - expected).abs() <= of_product(x, weight, bias)).all()
    for rows in (1, 2, 3, 4, 5, 6, 7, 13, 48, 49, 97):
        assert torch.equal(linear(x[:rows]), whole[:rows]), rows
        assert torch.equal(linear(x[130 - rows :]), whole[130 - rows :]), rows


def pairs_added_in_order(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # [T, K], [N, K] -> [T, N]
    """As AVX512_BF16 is specified: products of bfloat16 numbers are exact; of two, the second is added first."""
    a, b = (F.pad(each.bfloat16().float(), (0, each.shape[1] % 2)) for each in (x, weight))
    sums = torch.zeros(len(a), len(b))
    for k in range(0, a.shape[1], 2):
        for each in (k + 1, k):
            sums = sums + a[:, each, None] * b[None, :, each]
    return sums


@pytest.mark.parametrize(("columns", "depth"), [(96, 64), (33, 40), (17, 1), (48, 577)])
@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
def test_products_of_bfloat16_pairs_are_bitwise_those_of_the_instruction(
    columns: int, depth: int, loaded: torch.dtype
) -> None:
    weight, x = torch.randn(columns, depth).to(loaded), torch.randn(130, depth)
    linear = PanelLinear(weight, None, Team(2), Format.BFLOAT16_PAIRS)
    expected = pairs_added_in_order(x, weight)
    assert torch.equal(linear(x), expected)
    for rows in (1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 48, 61):
        assert torch.equal(linear(x[:rows]), expected[:rows]), rows


def test_rows_become_the_nearest_bfloat16_numbers_and_what_is_not_finite_stays_visible() -> None:
    odd = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8 + 2**-20), 3.4e38, float("inf"), float("-inf"), float("nan"), 0.0]
    x = torch.tensor(odd)[:, None]
    found = PanelLinear(torch.ones(1, 1), None, Team(1), Format.BFLOAT16_PAIRS)(x)
    assert torch.equal(found.nan_to_num(7), x.bfloat16().float().nan_to_num(7))


@pytest.mark.parametrize("rows", [1, 5, 70])
def test_the_number_of_threads_changes_no_bit(rows: int) -> None:
    weight, x = torch.randn(320, 96), torch.randn(rows, 96)
    alone = PanelLinear(weight, None, Team(1))(x)
    for threads in (2, 5):
        linear = PanelLinear(weight, None, Team(threads))
        assert all(torch.equal(linear(x), alone) for _ in range(20))


def test_weights_are_kept_in_bfloat16_only_where_it_holds_them_exactly() -> None:
    rounded = torch.randn(16, 8).bfloat16().float()
    assert fits_bfloat16(rounded)
    assert pack(rounded).form is Format.BFLOAT16
    rounded[3, 4] = 1 + float(np.finfo(np.float32).eps)
    assert pack(rounded).form is Format.FLOAT32


def test_leading_dimensions_are_kept_and_any_strides_are_read() -> None:
    weight, x = torch.randn(20, 12), torch.randn(12, 3, 2)
    linear = PanelLinear(weight, None, Team(1))
    found, expected = linear(x.permute(2, 1, 0)), x.permute(2, 1, 0).double() @ weight.double().T
    assert ((found - expected).abs() <= of_product(x.permute(2, 1, 0), weight)).all()


def test_what_is_not_finite_stays_visible() -> None:
    x = torch.ones(2, 16)
    x[1, 3] = float("nan")
    out = PanelLinear(torch.ones(16, 16), None, Team(1))(x)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize("form", Format)
def test_inputs_of_another_width_or_type_are_refused_before_the_kernel_runs(form: Format) -> None:
    linear = PanelLinear(torch.randn(48, 32), None, form=form)
    for x in (torch.zeros(4, 31), torch.zeros(4, 64), torch.zeros(4, 32, dtype=torch.float64)):
        with pytest.raises(ValueError, match="a product of 32"):
            linear(x)
    with pytest.raises(ValueError, match="a bias of 47"):
        PanelLinear(torch.randn(48, 32), torch.zeros(47), form=form)
    assert linear(torch.zeros(0, 32)).shape == (0, 48)
