"""One prompt and what to do with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from decoding.contract.params.beams import Beam, BeamSample, BestFirst, GroupBeam
from decoding.contract.params.branches import CotDecoding, Sed
from decoding.contract.params.contrastive import Contrastive
from decoding.contract.params.dola import Dola
from decoding.contract.params.entropix import Entropix
from decoding.contract.params.guidance import Guided, KlGuided
from decoding.contract.params.invalid import check
from decoding.contract.params.latent import LatentThoughts
from decoding.contract.params.logits import LogitsParams
from decoding.contract.params.logprobs import LogprobsParams
from decoding.contract.params.pooling import Pooling
from decoding.contract.params.sampling import BestOf, Sampling
from decoding.contract.params.speculation import Assisted, PromptLookup
from decoding.contract.params.stopping import StoppingParams

MAX_SEED = 2**64 - 1
MAIN = "main"
DRAFT = "draft"
"""The models that rows may live in."""

StrategyParams = (
    Sampling
    | BestOf
    | Beam
    | BeamSample
    | GroupBeam
    | BestFirst
    | Contrastive
    | Dola
    | Guided
    | KlGuided
    | Entropix
    | CotDecoding
    | Sed
    | PromptLookup
    | Assisted
    | Pooling
)
PARAMS: dict[str, type[StrategyParams]] = {p.NAME: p for p in StrategyParams.__args__}
"""Strategy name -> its params class: what the wire between the processes names."""


@dataclass(frozen=True, slots=True)
class Request:
    """Lower `priority` runs first; equal priorities run in arrival order, while rows last for all clients.

    client: whose it is; no client holds more than its share of the rows while others wait.
    source_ids: what an encoder reads, where the model has one; prompt_ids are then what its decoder begins with, and a
    strategy's second context is a second source.
    pause_ids: fed after the prompt, unseen by penalties and never part of the answer; latent: thoughts between the two.
    trace: report what the strategy saw and did.
    """

    prompt_ids: tuple[int, ...]
    strategy: StrategyParams = field(default_factory=Sampling)
    logits: LogitsParams = field(default_factory=LogitsParams)
    stopping: StoppingParams = field(default_factory=StoppingParams)
    logprobs: LogprobsParams = field(default_factory=LogprobsParams)
    seed: int = 0
    cache_salt: str = ""
    client: str = ""
    priority: int = 0
    pause_ids: tuple[int, ...] = ()
    trace: bool = False
    latent: LatentThoughts | None = None
    source_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(len(self.prompt_ids) > 0, "prompt", "must not be empty")
        check(min(self.prompt_ids) >= 0, "prompt", "must not hold a negative token id")
        check(min(self.source_ids, default=0) >= 0, "prompt", "must not hold a negative token id")
        check(min(self.pause_ids, default=0) >= 0, "pause_tokens", "must not hold a negative token id")
        check(0 <= self.seed <= MAX_SEED, "seed", "must fit 64 bits")
        if self.logits.grammar is not None:
            self._check_ends()

    def _check_ends(self) -> None:
        """The grammar says where the answer ends, and nothing is said behind it."""
        reason = "has no meaning with a form of the answer, which says where it ends"
        check(
            self.stopping.min_tokens == 0,
            "min_tokens",
            reason,
        )
        check(
            not self.stopping.ignore_eos,
            "ignore_eos",
            reason,
        )
        suffix = self.strategy.suffix_ids if isinstance(self.strategy, CotDecoding) else ()
        check(not suffix, "cot_decoding.suffix", reason)

    @property
    def num_beside(self) -> int:
        """Positions between the prompt and the answer."""
        return len(self.pause_ids) + (0 if self.latent is None else self.latent.num_positions)

    @property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """All that an encoder has to read."""
        return (self.source_ids, *filter(None, [_context_ids(self.strategy)])) if self.source_ids else ()

    @property
    def max_rows(self) -> int:
        """The most rows that can live at once."""
        return self.strategy.max_rows

    @property
    def max_rows_in(self) -> dict[str, int]:
        """The models it needs, and the most of its rows that can live in each."""
        if isinstance(self.strategy, Assisted):
            return {MAIN: self.strategy.n, DRAFT: self.strategy.n}
        return {MAIN: self.max_rows}

    @property
    def highest_token_id(self) -> int:
        """The highest token id that any of its fields names: it must be below the width of the logits."""
        named = (
            *self.source_ids,
            *self.prompt_ids,
            *self.pause_ids,
            *self.logits.token_ids,
            *self.stopping.stop_token_ids,
        )
        latent = () if self.latent is None else (self.latent.start_id, self.latent.end_id)
        highest: int = max([*named, *latent, *_strategy_ids(self.strategy)])
        return highest

    @property
    def max_length(self) -> int:
        """The most positions one row can take: the last token is never fed, unless a question follows it or its hidden
        state has a say in the choice."""
        own = self._length(self.stopping.max_tokens) + _num_behind(self.strategy)
        return max(own, _num_judged(self.strategy, self.stopping.max_tokens))

    @property
    def certain_length(self) -> int:
        """Positions that every row of an independent choice takes for sure, however early its text may end."""
        stopping = self.stopping
        is_endless = stopping.ignore_eos and not stopping.stop and not stopping.stop_token_ids
        return self._length(stopping.max_tokens if is_endless else stopping.min_tokens)

    def _length(self, num_output: int) -> int:
        beside = () if self.source_ids else _context_ids(self.strategy)
        opened = max(len(self.prompt_ids) + self.num_beside, len(beside))
        return opened + max(num_output - 1, 0)


def _context_ids(strategy: StrategyParams) -> tuple[int, ...]:
    """What the row beside the prompt's is opened with, where the strategy has one."""
    if isinstance(strategy, Guided):
        return strategy.negative_ids
    return strategy.context_ids if isinstance(strategy, KlGuided) else ()


def _strategy_ids(strategy: StrategyParams) -> tuple[int, ...]:
    """Token ids that the strategy's own parameters name."""
    if isinstance(strategy, Guided | KlGuided):
        return _context_ids(strategy)
    if isinstance(strategy, CotDecoding):
        return strategy.suffix_ids
    if isinstance(strategy, Sed):
        return (*strategy.eval_before, *strategy.eval_ids, strategy.yes_id, strategy.no_id)
    if isinstance(strategy, Entropix) and strategy.think_token_id is not None:
        return (strategy.think_token_id,)
    return ()


def _num_behind(strategy: StrategyParams) -> int:
    """Positions that the strategy may feed behind a finished text, the text's last token among them."""
    if isinstance(strategy, CotDecoding) and strategy.suffix_ids:
        return len(strategy.suffix_ids) + strategy.max_answer
    if isinstance(strategy, Sed):
        return 1 + len(strategy.eval_ids)
    return 1 if isinstance(strategy, Contrastive) else 0


def _num_judged(strategy: StrategyParams, max_tokens: int) -> int:
    """The most positions of a row that is opened only to judge a text."""
    if isinstance(strategy, Sed) and strategy.eval_before:
        return len(strategy.eval_before) + max_tokens + len(strategy.eval_ids)
    return 0
