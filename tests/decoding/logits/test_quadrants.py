"""entropix's quadrants, settings and filters equal their numpy derivation in `tests/goldens/layers.json`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.contract.params import Entropix
from decoding.engine.reading import entropies
from decoding.strategies.parts.quadrants import (
    Metrics,
    Quadrant,
    Settings,
    attention_metrics,
    filtered,
    quadrant,
    settings,
)
from tests.decoding.rounding_error import of_entropies, of_log_softmax

CASES = json.loads((Path(__file__).parents[2] / "goldens" / "layers.json").read_text(encoding="utf-8"))["entropix"]
PARAMS = Entropix()


def measured(case: dict[str, Any]) -> Metrics:
    h, v = (float(x) for x in entropies(torch.tensor([case["z"]])))
    bits = 1 / math.log(2)
    return Metrics(h * bits, v * bits**2, attention_metrics(torch.tensor(case["scores"])))


def metrics_error(case: dict[str, Any]) -> tuple[float, float]:
    """Of entropy and varentropy, which are measured in float32, in bits."""
    z, bits = torch.tensor(case["z"], dtype=torch.float64), 1 / math.log(2)
    h, v = (case["metrics"][name] / bits**power for name, power in (("entropy", 1), ("varentropy", 2)))
    h, v = of_entropies(h, v, float(z.log_softmax(-1).abs().max()), len(z))
    return h * bits, v * bits**2


def test_the_fixtures_cover_every_quadrant() -> None:
    assert {case["quadrant"] for case in CASES} == {q.value for q in Quadrant}


@pytest.mark.parametrize("case", CASES, ids=[f"{c['quadrant']}-{i}" for i, c in enumerate(CASES)])
def test_metrics_quadrant_settings_and_support_are_the_derived_ones(case: dict[str, Any]) -> None:
    m = measured(case)
    got = [m.entropy, m.varentropy, *astuple(m.attention)]
    h, v = metrics_error(case)
    assert got[:2] == [
        pytest.approx(case["metrics"]["entropy"], abs=h),
        pytest.approx(case["metrics"]["varentropy"], abs=v),
    ]
    assert got[2:] == pytest.approx(list(case["metrics"].values())[2:])  # in float64, as the derivation
    where = quadrant(m, PARAMS)
    assert where.value == case["quadrant"]
    found = settings(where, m, PARAMS)
    if case["settings"] is None:
        assert found is None
        return
    assert found is not None
    assert asdict(found) == pytest.approx(case["settings"], abs=h + v)  # which have factors below 1 in all of them
    temperature = found.temperature
    span = (max(case["z"]) - min(case["z"])) / temperature
    # a score moves with the temperature, and with both scores of a ratio its probability; nine decimals were recorded
    close = {"rtol": 2 * span * (h + v) / temperature + 2 * of_log_softmax(span + 1, len(case["z"])), "atol": 5e-10}
    for ids, p, is_compat in (("ids", "p", False), ("compat_ids", "compat_p", True)):
        drawn_from = filtered(torch.tensor(case["z"]), found, is_compat=is_compat).softmax(dim=-1)
        assert drawn_from.nonzero().flatten().tolist() == case[ids]
        torch.testing.assert_close(drawn_from[case[ids]].double(), torch.tensor(case[p], dtype=torch.float64), **close)


@pytest.mark.parametrize(
    ("h", "v", "where"),
    [
        (0.09, 0.09, "certain"), (0.1, 0.0, "adaptive"), (0.0, 0.1, "adaptive"), (5.01, 0.09, "thinking"),
        (5.0, 0.09, "adaptive"), (4.99, 5.01, "forking"), (0.0, 5.01, "forking"), (5.0, 5.01, "resampling"),
        (9.0, 5.01, "resampling"), (9.0, 5.0, "adaptive"), (4.0, 4.0, "adaptive"),
    ],
)  # fmt: skip
def test_the_borders_belong_to_the_adaptive_quadrant(h: float, v: float, where: str) -> None:
    assert quadrant(Metrics(h, v), PARAMS).value == where


def test_compat_loses_the_head_of_a_nucleus_and_the_fixed_version_its_tail() -> None:
    z = torch.tensor([0.0, 1.0, 2.0, 3.0])
    narrow = Settings(temperature=1.0, top_p=0.2, top_k=4, min_p=0.0)
    assert filtered(z, narrow, is_compat=False).isfinite().tolist() == [False, False, False, True]
    assert filtered(z, narrow, is_compat=True).isfinite().tolist() == [True, True, True, False]


def test_min_p_cuts_in_the_fixed_version_only() -> None:
    z = torch.tensor([0.0, 1.0, 2.0, 3.0])
    steep = Settings(temperature=1.0, top_p=1.0, top_k=4, min_p=0.3)
    assert filtered(z, steep, is_compat=False).isfinite().tolist() == [False, False, True, True]
    assert filtered(z, steep, is_compat=True).isfinite().all()


def test_excluded_tokens_and_a_temperature_of_zero_are_survived() -> None:
    z = torch.tensor([-math.inf, 1.0, 2.0, -math.inf])
    for is_compat in (False, True):
        cold = filtered(z, Settings(0.0, 0.9, 3, 0.03), is_compat=is_compat)
        assert cold.isfinite().tolist() == [False, False, True, False]
        warm = filtered(z, Settings(1.0, 1.0, 3, 0.0), is_compat=is_compat)
        assert warm.isfinite().tolist() == [False, True, True, False]


def test_keys_outside_a_window_are_no_keys() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    hidden = torch.cat((torch.full((3, 2), -math.inf), scores), dim=1)
    assert attention_metrics(hidden) == attention_metrics(scores)
