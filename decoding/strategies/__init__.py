"""One small file per strategy; this one only finds them by the name of their params class."""

from __future__ import annotations

from collections.abc import Callable

from decoding.params import BestOf, CotDecoding, Request, Sampling, Sed
from decoding.seam import Strategy, Tools
from decoding.stopping import Stopping
from decoding.strategies.best_of import BestOfStrategy
from decoding.strategies.cot_decoding import CotDecodingStrategy
from decoding.strategies.sampling import SamplingStrategy
from decoding.strategies.scoring import ScoringStrategy
from decoding.strategies.sed import SedStrategy

Build = Callable[[Request, Stopping, Tools], Strategy]

STRATEGIES: dict[str, Build] = {
    Sampling.NAME: SamplingStrategy,
    BestOf.NAME: BestOfStrategy,
    CotDecoding.NAME: CotDecodingStrategy,
    Sed.NAME: SedStrategy,
}


def build(request: Request, stopping: Stopping, tools: Tools) -> Strategy:
    """The strategy that `request.strategy` asks for; where nothing is to be generated they are all the same."""
    if request.stopping.max_tokens == 0:
        return ScoringStrategy(request, stopping, tools)
    return STRATEGIES[request.strategy.NAME](request, stopping, tools)
