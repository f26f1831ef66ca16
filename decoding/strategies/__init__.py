"""One small file per strategy; this one only finds them by the name of their params class."""

from __future__ import annotations

from collections.abc import Callable

from decoding.contract.params import (
    Assisted,
    Beam,
    BeamSample,
    BestFirst,
    BestOf,
    Contrastive,
    CotDecoding,
    Dola,
    Entropix,
    GroupBeam,
    Guided,
    KlGuided,
    Pooling,
    PromptLookup,
    Request,
    Sampling,
    Sed,
)
from decoding.seam import Strategy, Tools
from decoding.stopping import Stopping
from decoding.strategies.assisted import AssistedStrategy
from decoding.strategies.beam import BeamStrategy
from decoding.strategies.beam_sample import BeamSampleStrategy
from decoding.strategies.best_first import BestFirstStrategy
from decoding.strategies.best_of import BestOfStrategy
from decoding.strategies.contrastive import ContrastiveStrategy
from decoding.strategies.cot_decoding import CotDecodingStrategy
from decoding.strategies.dola import DolaStrategy
from decoding.strategies.entropix import EntropixStrategy
from decoding.strategies.group_beam import GroupBeamStrategy
from decoding.strategies.guided import GuidedStrategy
from decoding.strategies.kl_guided import KlGuidedStrategy
from decoding.strategies.latent import LatentStrategy
from decoding.strategies.pooling import PoolingStrategy
from decoding.strategies.prompt_lookup import PromptLookupStrategy
from decoding.strategies.sampling import SamplingStrategy
from decoding.strategies.scoring import ScoringStrategy
from decoding.strategies.sed import SedStrategy

Build = Callable[[Request, Stopping, Tools], Strategy]

STRATEGIES: dict[str, Build] = {
    Sampling.NAME: SamplingStrategy,
    BestOf.NAME: BestOfStrategy,
    Beam.NAME: BeamStrategy,
    BeamSample.NAME: BeamSampleStrategy,
    GroupBeam.NAME: GroupBeamStrategy,
    BestFirst.NAME: BestFirstStrategy,
    Contrastive.NAME: ContrastiveStrategy,
    Dola.NAME: DolaStrategy,
    Guided.NAME: GuidedStrategy,
    KlGuided.NAME: KlGuidedStrategy,
    Entropix.NAME: EntropixStrategy,
    CotDecoding.NAME: CotDecodingStrategy,
    Sed.NAME: SedStrategy,
    PromptLookup.NAME: PromptLookupStrategy,
    Assisted.NAME: AssistedStrategy,
    Pooling.NAME: PoolingStrategy,
}


def build(request: Request, stopping: Stopping, tools: Tools) -> Strategy:
    """The strategy that `request.strategy` asks for; those that generate are all the same where nothing is to be."""
    if request.stopping.max_tokens == 0 and not isinstance(request.strategy, Pooling):
        return ScoringStrategy(request, stopping, tools)
    strategy = STRATEGIES[request.strategy.NAME](request, stopping, tools)
    return strategy if request.latent is None else LatentStrategy(request, request.latent, strategy)
