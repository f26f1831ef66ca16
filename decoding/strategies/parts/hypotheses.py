"""Paths that share their past, and the answers that a search over them gives.

Tokens cannot be taken back, so a search commits only those that all paths which may still be returned have in common.
Paths form a tree. Those that can neither be returned nor continued are taken out; as long as one continuation alone is
left, it is committed. Each path enters and leaves the tree once, so this costs O(1) a path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from decoding.seam import Emit, Figure, Finish, NothingToDraw
from decoding.stopping import START, Progress
from decoding.strategies.parts.report import Report, Token


@dataclass(slots=True, eq=False)
class Path:
    """A token sequence: its last token and the path before that. The root has no token.

    score: what the search has added up so far.
    living: its continuations that are in the tree.
    """

    token: Token | None = None
    parent: Path | None = None
    score: float = 0.0
    progress: Progress = START
    finish: Finish | None = None
    living: list[Path] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.progress.num_tokens

    @property
    def token_ids(self) -> tuple[int, ...]:
        """What to feed after its parent."""
        return () if self.token is None else (self.token.id,)

    def tokens_after(self, length: int) -> list[Token]:
        """Its tokens beyond the first `length`."""
        tokens: list[Token] = []
        path: Path | None = self
        while path is not None and path.token is not None and path.length > length:
            tokens.append(path.token)
            path = path.parent
        return tokens[::-1]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished path and the score that it is ranked by."""

    path: Path
    score: float


class Answers:
    """The n choices of a search: a common prefix while it runs, the best hypotheses at its end."""

    def __init__(self, report: Report, n: int) -> None:
        self._report = report
        self._n = n
        self.root = Path()
        self._settled = self.root

    def keep(self, path: Path) -> None:
        """The path is new, and may be returned or continued."""
        assert path.parent is not None
        path.parent.living.append(path)

    def drop(self, path: Path) -> None:
        """The path itself can neither be returned nor be continued any more; its continuations may be."""
        while not path.living and path.parent is not None and path in path.parent.living:
            path.parent.living.remove(path)
            path = path.parent

    def settle(self) -> tuple[Emit, ...]:
        """The tokens that have become certain since the last call, for every choice."""
        tokens: list[Token] = []
        while len(self._settled.living) == 1:
            self._settled = self._settled.living[0]
            assert self._settled.token is not None
            tokens.append(self._settled.token)
        return tuple(self._report.emit(choice, tokens) for choice in range(self._n) if tokens)

    def end(self, hypotheses: Sequence[Hypothesis], figures: tuple[tuple[str, Figure], ...] = ()) -> tuple[Emit, ...]:
        """The rest of every choice. Raises NothingToDraw where there are fewer hypotheses than choices."""
        if len(hypotheses) < self._n:
            raise NothingToDraw("the request's own masks leave fewer answers than it asks for")
        return tuple(self._rests(hypotheses, figures))

    def _rests(self, hypotheses: Sequence[Hypothesis], figures: tuple[tuple[str, Figure], ...]) -> Iterator[Emit]:
        for choice, hypothesis in enumerate(hypotheses[: self._n]):
            path = hypothesis.path
            assert path.finish is not None
            finish = Finish(path.finish.reason, path.finish.stop_reason, hypothesis.score, figures)
            yield self._report.emit(choice, path.tokens_after(self._settled.length), finish)
