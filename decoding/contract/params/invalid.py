"""The one error of a parameter out of its domain."""

from __future__ import annotations

import math


class InvalidParam(ValueError):
    """A parameter out of its domain; `param` is the field's wire name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param} {message}")
        self.param = param


def check(ok: bool, param: str, message: str) -> None:
    if not ok:
        raise InvalidParam(param, message)


def check_finite(value: float, param: str, *, low: float = -math.inf, high: float = math.inf) -> None:
    """Finite and within [low, high]."""
    check(math.isfinite(value) and low <= value <= high, param, f"must be finite and lie in [{low:g}, {high:g}]")
