"""One small file per strategy; this one only finds them by the name of their params class."""

from __future__ import annotations

from collections.abc import Callable

from decoding.params import Beam, BeamSample, BestFirst, BestOf, GroupBeam, Request, Sampling
from decoding.seam import Strategy, Tools
from decoding.stopping import Stopping
from decoding.strategies.beam import BeamStrategy
from decoding.strategies.beam_sample import BeamSampleStrategy
from decoding.strategies.best_first import BestFirstStrategy
from decoding.strategies.best_of import BestOfStrategy
from decoding.strategies.group_beam import GroupBeamStrategy
from decoding.strategies.sampling import SamplingStrategy

Build = Callable[[Request, Stopping, Tools], Strategy]

STRATEGIES: dict[str, Build] = {
    Sampling.NAME: SamplingStrategy,
    BestOf.NAME: BestOfStrategy,
    Beam.NAME: BeamStrategy,
    BeamSample.NAME: BeamSampleStrategy,
    BestFirst.NAME: BestFirstStrategy,
    GroupBeam.NAME: GroupBeamStrategy,
}


def build(request: Request, stopping: Stopping, tools: Tools) -> Strategy:
    """The strategy that `request.strategy` asks for."""
    return STRATEGIES[request.strategy.NAME](request, stopping, tools)
