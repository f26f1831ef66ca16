"""The seam between the engine and the strategies: what a strategy may ask for and what it gets to see.

A strategy is a small state machine over rows. A row is one token sequence with its own page table and side state. Once
per tick in which all rows of its last Move ran, the engine calls `step(Observation)` and gets the next Move. Between
the two stand only the words of this file, so the engine never learns a strategy's name and a strategy never sees a
page.

The ten primitives (decoding-methods 4) and where they are: feed ids `Feed.tokens`; feed embeddings `Feed.embeds`; want
`Want`; fork: two feeds of one parent; truncate `Feed.drop`; drop: a row neither fed nor held; open another model or
context `Open`; emit and finish `Emit`; counter-based RNG `Draw`, `Tools.uniform`; the logits pipeline at a hypothetical
history: `Feed.inner` (every position sees its own history) and `Tools.process`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NewType, Protocol

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
    """Which scores `top_k`, `gather`, `gather_next` and `full` report, all float32 [vocab].

    RAW: log_softmax(z). PROCESSED: log_softmax of the row's whole logits pipeline. BEAM: the pipeline's processors
    applied to log_softmax(z) and not normalised again, as Hugging Face's beam search does. WARPED: as BEAM, and the
    warpers after the processors, as its beam sample does. LOGITS: z itself.
    """

    RAW = "raw"
    PROCESSED = "processed"
    BEAM = "beam"
    WARPED = "warped"
    LOGITS = "logits"


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Draw:
    """One token drawn from the pipeline's distribution, keyed by (seed, choice, absolute position, purpose)."""

    choice: int = 0
    purpose: Purpose = Purpose.SAMPLE


class NothingToDraw(Exception):
    """The request's own masks leave no token where it has to have one. A strategy's `step` may raise this."""


@dataclass(frozen=True, slots=True)
class Want:
    """What to read at a position. The default reads nothing: the feed only fills the cache.

    draws: tokens drawn (argmax where the row's temperature is 0). logprobs: report the drawn tokens' raw log-probs, and
    their scores in the kind that `scores` names; of the ids in `top_k`, `gather` and `full` the raw log-probs too.
    top_k: the k best (id, score). raw_top: the k best (id, raw log-prob), whatever `scores` says.
    gather: scores of these ids. gather_next: score of the token that follows in the feed. entropy: entropy and
    varentropy in nats of softmax(z). hidden: last hidden state after the final norm. layers: logits of these hidden
    layers through the head, without final norm. attention: last layer's scores of the last query.
    contrast: hidden layers to contrast z with before the pipeline sees it, among ids at least relative_top times as
    likely as the likeliest (`logits/contrast.py`); raw log-probs and entropy stay those of the untouched z. keep: as
    full, but the scores stay on the model's device (with logprobs the raw ones too), and those of the drawn tokens are
    reported. is_tentative: the text may never come here; where masks leave nothing to draw, the Reading is empty and
    the request goes on.
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

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The hidden layers that the forward must keep."""
        return self.layers + self.contrast

    @property
    def reads_scores(self) -> bool:
        """Whether anything is read in the kind that `scores` names."""
        return bool(self.logprobs or self.top_k or self.gather or self.gather_next or self.full or self.keep)

    @property
    def reads_head(self) -> bool:
        """Whether the position has to go through the head at all."""
        return bool(self.draws or self.reads_scores or self.raw_top or self.entropy)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is read here."""
        return not (self.reads_head or self.hidden or self.layers or self.attention)


NOTHING = Want()


@dataclass(frozen=True, slots=True)
class Open:
    """A new, empty row in a model. The tokens of its first feed are its prompt, for penalties and minimum lengths.

    source_ids: what the row reads through the model's encoder, where it is not the request's source.
    """

    model: str = MAIN
    source_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Feed:
    """Continue `parent`: forget its last `drop` tokens, then read `tokens` (or `embeds`, [m, hidden]).

    Two feeds of one parent fork it. Injected tokens enter the cache but not the history that penalties and counts see;
    embeddings are always injected; of `tokens` the last `num_injected` are. `want` is read at the feed's last position,
    `inner` at each one before it. A feed without tokens and embeds re-reads the last position that `drop` leaves.
    """

    parent: RowId | Open
    tokens: tuple[int, ...] = ()
    embeds: torch.Tensor | None = None
    drop: int = 0
    want: Want = NOTHING
    inner: Want = NOTHING
    num_injected: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read at one position; fields not wanted are empty. Tensors are on the host, but for the kept, float32.

    tokens, logprobs (raw) and drawn_scores (in Want.scores) follow Want.draws; top and raw_top are best first (ties:
    lower id first); gathered follows Want.gather; top_logprobs, gathered_logprobs and full_logprobs are the raw
    log-probs of their ids. next_score is None at the feed's last position. full: [vocab]. hidden: [hidden]. layers:
    index -> [vocab]. attention: [heads, keys]. contrasted: the layer of Want.contrast that z was contrasted with. kept,
    kept_raw: scores and raw log-probs [vocab].
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
    layers: dict[int, torch.Tensor] = field(default_factory=dict)
    attention: torch.Tensor | None = None
    contrasted: int | None = None
    kept: torch.Tensor | None = None
    kept_raw: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class RowView:
    """One fed row.

    Its id (a parent for the next Move), its length in positions, one Reading per position with a non-empty Want.
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
    score: what the strategy ranks by (cumulative raw log-prob unless its file says otherwise), if known.
    figures: what else it has to say of the choice, by name (`cot_confidence`, `forwards`, …).
    """

    reason: FinishReason
    stop_reason: int | StopSequence | None = None
    score: float | None = None
    figures: tuple[tuple[str, Figure], ...] = ()


@dataclass(frozen=True, slots=True)
class Emit:
    """Commit tokens to a choice; never retracted.

    logprobs (in the request's mode) and top are parallel to token_ids, or None when not asked. raw_logprobs are there
    for a strategy that ranks what another one emitted; the engine does not read them.
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

    drafted, accepted: tokens proposed and accepted in the round that this Move ends. trace: only where the request
    asked for one. vector: the answer of a request that asks for numbers, not tokens.

    The engine may spread a Move's rows over several ticks (a row's numbers do not depend on when it ran); `step` is
    called when all of them have run.
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
