"""One prompt and what to do with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from decoding.contract.params.base import StrategyParams
from decoding.contract.params.declared import Named, TokenId, check_declared, token_ids
from decoding.contract.params.invalid import check
from decoding.contract.params.latent import LatentThoughts
from decoding.contract.params.logits import LogitsParams
from decoding.contract.params.logprobs import LogprobsParams
from decoding.contract.params.plugin import PluginStrategy
from decoding.contract.params.sampling import Sampling
from decoding.contract.params.stopping import StoppingParams

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """Lower `priority` runs first; equal priorities run in arrival order, while rows last for all clients.

    client: whose it is; no client holds more than its share of the rows while others wait.
    source_ids: what an encoder reads, where the model has one; prompt_ids are then what its decoder begins with, and a
    strategy's second context is a second source.
    pause_ids: fed after the prompt, unseen by penalties and never part of the answer; latent: thoughts between the two.
    trace: report what the strategy saw and did.
    """

    prompt_ids: Annotated[tuple[TokenId, ...], Named("prompt")]
    strategy: StrategyParams = field(default_factory=Sampling)
    logits: LogitsParams = field(default_factory=LogitsParams)
    stopping: StoppingParams = field(default_factory=StoppingParams)
    logprobs: LogprobsParams = field(default_factory=LogprobsParams)
    seed: int = 0
    cache_salt: str = ""
    client: str = ""
    priority: int = 0
    pause_ids: Annotated[tuple[TokenId, ...], Named("pause_tokens")] = ()
    trace: bool = False
    latent: LatentThoughts | None = None
    source_ids: Annotated[tuple[TokenId, ...], Named("prompt")] = ()

    def __post_init__(self) -> None:
        check(len(self.prompt_ids) > 0, "prompt", "must not be empty")
        check_declared(self)
        check(0 <= self.seed <= MAX_SEED, "seed", "must fit 64 bits")
        if self.logits.grammar is not None:
            self._check_ends()

    def _check_ends(self) -> None:
        """The grammar says where the answer ends, and nothing is said behind it."""
        reason = "has no meaning with a form of the answer, which says where it ends"
        check(self.stopping.min_tokens == 0, "min_tokens", reason)
        check(not self.stopping.ignore_eos, "ignore_eos", reason)
        check(not self.strategy.suffix_ids, "cot_decoding.suffix", reason)

    @property
    def num_beside(self) -> int:
        """Positions between the prompt and the answer."""
        return len(self.pause_ids) + (0 if self.latent is None else self.latent.num_positions)

    @property
    def num_opened(self) -> int:
        """Positions of the longest row before the answer."""
        return max(self._num_shared, len(self.strategy.judge_context))

    @property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """All that an encoder has to read."""
        return (self.source_ids, *filter(None, [self.strategy.second_context])) if self.source_ids else ()

    @property
    def max_rows(self) -> int:
        return self.strategy.max_rows

    @property
    def max_rows_in(self) -> dict[str, int]:
        return self.strategy.max_rows_in

    @property
    def highest_token_id(self) -> int:
        """The highest token id that any of its fields names: it must be below the width of the logits."""
        parts = (self, self.stopping, *filter(None, [self.latent]))
        return max((*self.logits.token_ids, *self.strategy.token_ids, *(i for part in parts for i in token_ids(part))))

    @property
    def max_length(self) -> int:
        """The most positions one row can take: the last token is fed only where the strategy needs it."""
        num_fed = self.stopping.max_tokens + self.strategy.num_behind - (not self.strategy.feeds_last)
        return self.num_opened + max(num_fed, 0)

    @property
    def certain_length(self) -> int:
        """Positions that every row of an independent choice takes for sure, however early its text may end."""
        stopping = self.stopping
        is_endless = stopping.ignore_eos and not stopping.stop and not stopping.stop_token_ids
        num_output = stopping.max_tokens if is_endless else stopping.min_tokens
        return self._num_shared + max(num_output - 1, 0)

    @property
    def is_foreign(self) -> bool:
        """Whether code of a plugin decodes it."""
        return isinstance(self.strategy, PluginStrategy) or bool(self.logits.plugin_steps)

    @property
    def _num_shared(self) -> int:
        """Positions that are the same in every choice."""
        beside = () if self.source_ids else self.strategy.second_context
        return max(len(self.prompt_ids) + self.num_beside, len(beside))
