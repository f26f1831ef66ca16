"""What a plugin's strategies and steps are: params like ours, that also say how they decode.

The class is all that the server's process sees of a plugin, and that process must not load torch. So what decodes is a
method, which the worker alone calls, and torch and the words of `decoding/plugin/words.py` are imported in it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from decoding.contract.params.base import StrategyParams
from decoding.contract.params.declared import Kind, check_declared, token_ids

if TYPE_CHECKING:
    from decoding.contract.params.request import Request

WARPING = ("temperature", "filter", "dynamic temperature")
"""Kinds of steps that act only where tokens are drawn."""


class PluginStrategy(StrategyParams):
    """A strategy of a plugin: a frozen dataclass whose fields are its parameters."""

    __slots__ = ()

    @classmethod
    def sample(cls, rng: random.Random) -> Self | None:
        """Parameters for `polydecode check` to try; None: random ones within the bounds."""
        return None

    def decode(self, request: Request, stopping: Any, tools: Any) -> Any:
        """One request's state machine: a generator that yields Moves and is sent Observations, or an object with
        `begin` and `step` (`decoding/seam.py`). stopping: the request's `Stopping`; tools: its `Tools`."""
        raise NotImplementedError


class PluginStep:
    """A token-level step of a plugin: a frozen dataclass whose fields are its parameters.

    NAME: the wire object that asks for it and holds its fields. KIND: penalties, lengths and masks act always, behind
    ours; temperatures and filters where tokens are drawn, behind ours too. excludes: keys that have no meaning with it.
    """

    __slots__ = ()

    NAME: ClassVar[str]
    KIND: ClassVar[Kind]
    PURPOSE: ClassVar[str]
    PAPER: ClassVar[str] = ""
    WITHIN: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.WITHIN = getattr(cls, "NAME", "")

    def __post_init__(self) -> None:
        check_declared(self)
        self._check()

    def _check(self) -> None:
        """What is declared of no single field. Raises InvalidParam."""

    @property
    def warps(self) -> bool:
        return self.KIND in WARPING

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every id that a field names."""
        return token_ids(self)

    @classmethod
    def sample(cls, rng: random.Random) -> Self | None:
        """Parameters for `polydecode check` to try; None: random ones within the bounds."""
        return None

    def step(self, eos_token_ids: Sequence[int], token_bytes: Sequence[bytes]) -> Any:
        """The step (`decoding/logits/step.py`). token_bytes: what each id stands for, as far as the server knows."""
        raise NotImplementedError
