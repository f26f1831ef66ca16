"""One small file per strategy; this one only finds them by the name of their params class."""

from __future__ import annotations

from collections.abc import Callable

from decoding.contract import params
from decoding.contract.params import Pooling, Request
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
    params.Sampling.NAME: SamplingStrategy,
    params.BestOf.NAME: BestOfStrategy,
    params.Beam.NAME: BeamStrategy,
    params.BeamSample.NAME: BeamSampleStrategy,
    params.GroupBeam.NAME: GroupBeamStrategy,
    params.BestFirst.NAME: BestFirstStrategy,
    params.Contrastive.NAME: ContrastiveStrategy,
    params.Dola.NAME: DolaStrategy,
    params.Guided.NAME: GuidedStrategy,
    params.KlGuided.NAME: KlGuidedStrategy,
    params.Entropix.NAME: EntropixStrategy,
    params.CotDecoding.NAME: CotDecodingStrategy,
    params.Sed.NAME: SedStrategy,
    params.PromptLookup.NAME: PromptLookupStrategy,
    params.Assisted.NAME: AssistedStrategy,
    params.Pooling.NAME: PoolingStrategy,
}


def build(request: Request, stopping: Stopping, tools: Tools) -> Strategy:
    """The strategy that `request.strategy` asks for; those that generate are all the same where nothing is to be."""
    if request.stopping.max_tokens == 0 and not isinstance(request.strategy, Pooling):
        return ScoringStrategy(request, stopping, tools)
    strategy = STRATEGIES[request.strategy.NAME](request, stopping, tools)
    return strategy if request.latent is None else LatentStrategy(request, request.latent, strategy)
