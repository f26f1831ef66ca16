"""What every strategy's parameters say, and what holds unless a strategy says otherwise."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, ClassVar

from decoding.contract.params.declared import MAX_INT, Named, Off, Says, Within, check_declared, models_named, token_ids

MAIN = "main"
DRAFT = "draft"
"""Two models that rows may live in; those beside them have the names that the operator gives them (`--also`)."""
Choices = Annotated[int, Within(1, MAX_INT), Off(1), Named("n"), Says("Choices returned.")]


class StrategyParams:
    """The parameters of one strategy: a frozen dataclass.

    NAME: the strategy's, on the wire between the processes too. WITHIN: the wire object that holds its fields.
    """

    __slots__ = ()

    NAME: ClassVar[str]
    WITHIN: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_declared(self)
        self._check()

    def _check(self) -> None:
        """What is declared of no single field. Raises InvalidParam."""

    @property
    def n(self) -> int:
        """The choices that are returned."""
        return 1

    @property
    def max_rows(self) -> int:
        """The most rows that can live at once: of each choice one in each of its models and contexts."""
        return self.n * (1 + len(self.beside) + bool(self.second_context))

    @property
    def beside(self) -> tuple[str, ...]:
        """Each choice has a row in each of these models as well, by default in those that fields name."""
        return tuple(name for _, name in models_named(self))

    @property
    def max_rows_in(self) -> dict[str, int]:
        """The models it needs, and the most of its rows that can live in each."""
        beside = Counter(self.beside * self.n)
        return dict(Counter({MAIN: self.max_rows - beside.total()}) + beside)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every id that a field names."""
        return token_ids(self)

    @property
    def second_context(self) -> tuple[int, ...]:
        """What the row beside the prompt's is opened with, where there is one; with an encoder its source."""
        return ()

    @property
    def judge_context(self) -> tuple[int, ...]:
        """What a row is opened with, before the answer so far, only to judge it."""
        return ()

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """What is put behind a finished answer for the model to go on from."""
        return ()

    @property
    def num_behind(self) -> int:
        """The most tokens that follow a finished answer and are no part of it."""
        return 0

    @property
    def feeds_last(self) -> bool:
        """Whether the last of all tokens is fed as well, for what its hidden state or its successor says."""
        return False
