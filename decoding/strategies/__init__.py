"""One small file per strategy; this one only finds them by the name of their params class."""

from __future__ import annotations

from collections.abc import Callable

from decoding.params import Assisted, BestOf, PromptLookup, Request, Sampling
from decoding.seam import Strategy, Tools
from decoding.stopping import Stopping
from decoding.strategies.assisted import AssistedStrategy
from decoding.strategies.best_of import BestOfStrategy
from decoding.strategies.prompt_lookup import PromptLookupStrategy
from decoding.strategies.sampling import SamplingStrategy

Build = Callable[[Request, Stopping, Tools], Strategy]

STRATEGIES: dict[str, Build] = {
    Sampling.NAME: SamplingStrategy,
    BestOf.NAME: BestOfStrategy,
    PromptLookup.NAME: PromptLookupStrategy,
    Assisted.NAME: AssistedStrategy,
}


def build(request: Request, stopping: Stopping, tools: Tools) -> Strategy:
    """The strategy that `request.strategy` asks for."""
    return STRATEGIES[request.strategy.NAME](request, stopping, tools)
