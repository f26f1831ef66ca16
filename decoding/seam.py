"""The seam between the engine and the strategies: what a strategy may ask for and what it gets to see.

A strategy is a small state machine over rows. A row is one token sequence with its own page table and side state. When
all rows of its last Move have run, the engine calls `step(Observation)` and gets the next Move. The two know only the
words of this file: the engine knows no strategy by name, and no strategy sees a page.

What a strategy can do, and where:

feed ids: `Feed.tokens`
feed embeddings: `Feed.embeds`
read a position: `Want`
fork a row: two feeds of one parent
forget the end of a row: `Feed.drop`
free a row: neither feed nor hold it
open a row, in another model or context too: `Open`
answer: `Emit`, `Finish`
random numbers: `Draw`, `Tools.uniform`
the logits pipeline at a history that was not fed: `Feed.inner` (every position sees its own history), `Tools.process`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import NamedTuple, NewType, Protocol

import torch

from decoding.contract.params import MAIN, LogitsParams
from decoding.contract.params.stopping import StopSequence

RowId = NewType("RowId", int)

Figure = int | float | str
"""What can be said of a choice beside its tokens."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


class Purpose(IntEnum):
    """What a draw is for: part of the RNG key, so that no two uses share a random number."""

    SAMPLE = 0
    SPECULATION_ACCEPT = 1
    SPECULATION_RESIDUAL = 2
    SPECULATION_DRAFT = 3
    BEAM_GUMBEL = 4
    ADAPTIVE = 5


class Scores(Enum):
    """A kind of score, float32 [vocab]; z are the model's logits.

    RAW: log_softmax(z).
    PROCESSED: log_softmax of what the row's whole logits pipeline makes of z.
    BEAM: the pipeline's processors on log_softmax(z), not normalised again, as in Hugging Face's beam search.
    WARPED: as BEAM, with the warpers after the processors, as in its beam sample.
    LOGITS: z itself.
    """

    RAW = "raw"
    PROCESSED = "processed"
    BEAM = "beam"
    WARPED = "warped"
    LOGITS = "logits"


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Draw:
    """One token drawn from the pipeline's distribution, keyed by (seed, choice, absolute position, purpose)."""

    choice: int = 0
    purpose: Purpose = Purpose.SAMPLE


class NothingToDraw(Exception):
    """The request's own masks leave no token where it needs one: the whole request fails. Strategies may raise it."""

    def __init__(self, message: str = "the request's own masks exclude every token") -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Want:
    """What to read at a position. The default reads nothing: the feed only fills the cache.

    draws: tokens to draw; the best one where the row's temperature is 0.
    logprobs: the raw log-probs of drawn tokens and their scores; raw log-probs of the ids in top_k, gather and full.
    top_k: the k best (id, score).
    raw_top: the k best (id, raw log-prob).
    gather: the scores of these ids.
    gather_next: the score of the token that follows in the feed.
    full: the scores of the whole vocabulary.
    entropy: entropy and varentropy of softmax(z), in nats.
    hidden: the last hidden state, after the final norm.
    layers: the logits that the head makes of these hidden layers, without the final norm.
    attention: the last layer's attention scores of this position's query.
    contrast: hidden layers, one of which z is contrasted with before the pipeline sees it (`logits/contrast.py`). Raw
        log-probs and entropy stay those of z itself.
    relative_top: the contrast excludes ids that are less than so many times as likely as the likeliest.
    keep: as full, but the scores stay on the model's device, with logprobs the raw ones too; the scores of drawn tokens
        are reported.
    is_tentative: the text may never come here. Where masks leave nothing to draw, the request does not fail and the
        Reading is empty.
    scores: the kind that all scores here have.

    What follows from these:

    hidden_layers: the hidden layers that the forward must keep.
    reads_scores: something is read in the kind that `scores` names.
    reads_head: the position has to go through the head at all.
    is_empty: nothing is read here.
    only_draws: one token is drawn, and nothing else is read.
    """

    draws: tuple[Draw, ...] = ()
    logprobs: bool = False
    top_k: int = 0
    raw_top: int = 0
    gather: tuple[int, ...] = ()
    gather_next: bool = False
    full: bool = False
    entropy: bool = False
    hidden: bool = False
    layers: tuple[int, ...] = ()
    attention: bool = False
    contrast: tuple[int, ...] = ()
    relative_top: float = 0.1
    keep: bool = False
    is_tentative: bool = False
    scores: Scores = Scores.RAW
    hidden_layers: tuple[int, ...] = field(init=False, repr=False, compare=False)
    reads_scores: bool = field(init=False, repr=False, compare=False)
    reads_head: bool = field(init=False, repr=False, compare=False)
    is_empty: bool = field(init=False, repr=False, compare=False)
    only_draws: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """What follows from the others, once: a strategy wants the same at every step, and the engine looks often."""
        scores = bool(self.logprobs or self.top_k or self.gather or self.gather_next or self.full or self.keep)
        head = bool(self.draws or scores or self.raw_top or self.entropy)
        states = bool(self.hidden or self.layers or self.attention)
        is_alone = not (scores or states or self.raw_top or self.entropy or self.contrast or self.is_tentative)
        found = {
            "hidden_layers": self.layers + self.contrast,
            "reads_scores": scores,
            "reads_head": head,
            "is_empty": not (head or states),
            "only_draws": len(self.draws) == 1 and is_alone,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)


NOTHING = Want()


@dataclass(frozen=True, slots=True)
class Open:
    """A new, empty row in a model. For penalties and minimum lengths, the tokens of its first feed are its prompt.

    source_ids: what the row reads through the model's encoder, if not the request's source.
    """

    model: str = MAIN
    source_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Feed:
    """Continue a row. Two feeds of one parent fork it.

    Injected tokens enter the cache, but not the history that penalties and counts see; embeddings are always injected.
    A feed without tokens and embeds reads the row's last position again.

    parent: the row to continue.
    tokens: what to append.
    embeds: vectors in the place of tokens, [m, hidden].
    drop: forget so many of the parent's last tokens first.
    want: what to read at the feed's last position.
    inner: what to read at each position before that.
    num_injected: so many of the last tokens are injected.
    """

    parent: RowId | Open
    tokens: tuple[int, ...] = ()
    embeds: torch.Tensor | None = None
    drop: int = 0
    want: Want = NOTHING
    inner: Want = NOTHING
    num_injected: int = 0


class Reading(NamedTuple):  # as `Emit`: every token makes one
    """What was read at one position; fields not wanted are empty. Scores are of the kind that `Want.scores` names.

    Tensors are float32 and on the host, but for the kept ones.

    tokens: drawn, in the order of Want.draws.
    logprobs: their raw log-probs.
    drawn_scores: their scores.
    top: (id, score), best first; the lower id first among equals.
    top_logprobs: their raw log-probs.
    raw_top: (id, raw log-prob), in the same order.
    gathered: scores in the order of Want.gather.
    gathered_logprobs: their raw log-probs.
    next_score: None at the feed's last position.
    full: scores [vocab].
    full_logprobs: raw log-probs [vocab].
    entropy, varentropy: of softmax(z), in nats.
    hidden: [hidden].
    layers: index -> logits [vocab].
    attention: [heads, keys].
    contrasted: the layer of Want.contrast that z was contrasted with.
    kept: scores [vocab], on the model's device.
    kept_raw: raw log-probs [vocab], there too.
    """

    position: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    drawn_scores: tuple[float, ...] = ()
    top: tuple[tuple[int, float], ...] = ()
    top_logprobs: tuple[float, ...] = ()
    raw_top: tuple[tuple[int, float], ...] = ()
    gathered: tuple[float, ...] = ()
    gathered_logprobs: tuple[float, ...] = ()
    next_score: float | None = None
    full: torch.Tensor | None = None
    full_logprobs: torch.Tensor | None = None
    entropy: float | None = None
    varentropy: float | None = None
    hidden: torch.Tensor | None = None
    layers: Mapping[int, torch.Tensor] = MappingProxyType({})
    attention: torch.Tensor | None = None
    contrasted: int | None = None
    kept: torch.Tensor | None = None
    kept_raw: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class RowView:
    """One fed row.

    row: its id, a parent for the next Move.
    length: in positions.
    readings: one for each position of the feed with a Want that is not empty.
    """

    row: RowId
    length: int
    readings: tuple[Reading, ...]

    @property
    def last(self) -> Reading:
        return self.readings[-1]


@dataclass(frozen=True, slots=True)
class Observation:
    """The rows of the last Move, in the order of its feeds."""

    rows: tuple[RowView, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """A choice is over.

    stop_reason: the stop token's id, or the stop sequence; None for EOS and length.
    score: what the strategy ranks by, if known: the cumulative raw log-prob unless its file says otherwise.
    figures: what else it says of the choice, by name (`cot_confidence`, `forwards`, …).
    """

    reason: FinishReason
    stop_reason: int | StopSequence | None = None
    score: float | None = None
    figures: tuple[tuple[str, Figure], ...] = ()


class Emit(NamedTuple):  # of tuples the cheapest: every token makes one
    """Commit tokens to a choice; never retracted.

    logprobs: of each token, in the request's mode; None where it asks for none.
    top: in each token's place the best (id, log-prob); None likewise.
    raw_logprobs: for a strategy that ranks what another one emitted; the engine does not read them.
    finish: with the choice's last tokens.
    """

    choice: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    top: tuple[tuple[tuple[int, float], ...], ...] | None = None
    raw_logprobs: tuple[float, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class PromptEmit:
    """The prompt's scores: one per prompt token, the first None."""

    logprobs: tuple[float | None, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One thing that a strategy saw or did, for clients that asked for a trace. step counts the strategy's own steps.

    Only finite numbers: it becomes JSON.
    """

    step: int
    kind: str
    values: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Move:
    """What a strategy does next. Rows neither fed nor held are dropped. No feeds: the request is over.

    The engine may spread a Move's rows over several ticks; `step` is called when all of them have run.

    feeds: the rows to continue, and how.
    hold: rows to keep without feeding them.
    emit: tokens of the answer.
    prompt: the prompt's scores, once.
    drafted, accepted: tokens proposed and accepted in the round that this Move ends.
    trace: only where the request asked for one.
    vector: the answer of a request that asks for numbers instead of tokens.
    """

    feeds: tuple[Feed, ...] = ()
    hold: tuple[RowId, ...] = ()
    emit: tuple[Emit, ...] = ()
    prompt: PromptEmit | None = None
    drafted: int = 0
    accepted: int = 0
    trace: tuple[TraceEvent, ...] = ()
    vector: tuple[float, ...] = ()


class Tools(Protocol):
    """The engine's services to one request's strategy, beside feeding and reading."""

    def uniform(self, draw: Draw, position: int, count: int = 1) -> list[float]:
        """`count` numbers in [0, 1) keyed by (request seed, draw.choice, position, draw.purpose)."""

    def uniforms(self, draw: Draw, positions: Sequence[int]) -> list[float]:
        """The first such number of every position."""

    def process(
        self,
        row: RowId,
        hypothetical: Sequence[int],
        scores: torch.Tensor,
        *,
        logits: LogitsParams | None = None,
        warps: bool = True,
    ) -> torch.Tensor:
        """The request's logits pipeline on scores [vocab], as if `hypothetical` ids had been fed to `row` after its
        last. logits: another pipeline than the request's (a temperature of the moment). warps: False leaves
        temperature and filters out.
        """

    def draw(self, scores: torch.Tensor, draw: Draw, position: int, lane: int = 0) -> int:
        """One id from softmax(scores [vocab]), with the random number that `draw`, `position` and `lane` name."""

    def text_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The UTF-8 bytes that the ids stand for, as far as the server knows them."""


class Strategy(Protocol):
    """One request's state machine. It holds no tensor that depends on the cache: rows may be re-fed behind its back."""

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        """The first Move: usually one row fed the prompt."""

    def step(self, seen: Observation) -> Move:
        """The next Move, after all rows of the last one ran."""
