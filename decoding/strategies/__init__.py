"""One small file per strategy; this one only finds them by the name of their params class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from decoding.params import Beam, BeamSample, BestFirst, BestOf, GroupBeam, Request, Sampling
from decoding.params import BestOf, Contrastive, Dola, Entropix, Guided, KlGuided, Request, Sampling
from decoding.seam import Strategy, Tools
from decoding.stopping import Stopping
from decoding.strategies.beam import BeamStrategy
from decoding.strategies.beam_sample import BeamSampleStrategy
from decoding.strategies.best_first import BestFirstStrategy
from decoding.strategies.best_of import BestOfStrategy
from decoding.strategies.group_beam import GroupBeamStrategy
from decoding.strategies.contrastive import ContrastiveStrategy
from decoding.strategies.dola import DolaStrategy
from decoding.strategies.entropix import EntropixStrategy
from decoding.strategies.guided import GuidedStrategy
from decoding.strategies.kl_guided import KlGuidedStrategy
from decoding.strategies.sampling import SamplingStrategy

Build = Callable[[Request, Stopping, Tools], Strategy]

STRATEGIES: dict[str, Build] = {
    Sampling.NAME: SamplingStrategy,
    BestOf.NAME: BestOfStrategy,
    Beam.NAME: BeamStrategy,
    BeamSample.NAME: BeamSampleStrategy,
    BestFirst.NAME: BestFirstStrategy,
    GroupBeam.NAME: GroupBeamStrategy,
    Contrastive.NAME: ContrastiveStrategy,
    Dola.NAME: DolaStrategy,
    Guided.NAME: GuidedStrategy,
    KlGuided.NAME: KlGuidedStrategy,
    Entropix.NAME: EntropixStrategy,
}


def build(request: Request, stopping: Stopping, tools: Tools) -> Strategy:
    """The strategy that `request.strategy` asks for. Where nothing is to be generated they are all one: sampling, which
    scores the prompt at most.
    """
    if request.stopping.max_tokens == 0:
        request = dataclasses.replace(request, strategy=Sampling(request.strategy.n))
    return STRATEGIES[request.strategy.NAME](request, stopping, tools)
