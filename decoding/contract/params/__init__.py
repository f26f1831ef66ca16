"""What one request asks of the engine: frozen, validated on construction, free of torch.

`server/translate/translate.py` builds these from a wire request, `decoding/worker/worker.py` hands them to the engine.
One params class per strategy; the fields every strategy shares (logits pipeline, stopping, log-probs) stand beside it
in `Request`. Everything here is per request: nothing is ever shared by a batch.
"""

import importlib
import pkgutil

from decoding.contract.params.base import DRAFT, MAIN, StrategyParams
from decoding.contract.params.beams import Beam, BeamSample, BestFirst, GroupBeam
from decoding.contract.params.branches import CotDecoding, Sed
from decoding.contract.params.contrastive import Contrastive
from decoding.contract.params.dola import Dola, premature_layers
from decoding.contract.params.entropix import Entropix
from decoding.contract.params.grammar import Grammar, GrammarKind, choice_grammar
from decoding.contract.params.guidance import ContextAware, Guided, KlGuided, Pmi
from decoding.contract.params.invalid import InvalidParam
from decoding.contract.params.latent import LatentThoughts
from decoding.contract.params.logits import Adapt, Edt, LogitsParams, PenaltyScope, SamplerOrder
from decoding.contract.params.logprobs import LogprobsMode, LogprobsParams
from decoding.contract.params.mixtures import ContrastiveDecoding, Dexperts, Ensemble
from decoding.contract.params.pooling import PoolBy, Pooling
from decoding.contract.params.request import MAX_SEED, Request
from decoding.contract.params.sampling import BestOf, RankBy, Sampling
from decoding.contract.params.speculation import Assisted, PromptLookup, Schedule
from decoding.contract.params.stopping import StoppingParams

__all__ = [
    "DRAFT", "MAIN", "MAX_SEED", "PARAMS", "Adapt", "Assisted", "Beam", "BeamSample", "BestFirst", "BestOf",
    "ContextAware", "Contrastive", "ContrastiveDecoding", "CotDecoding", "Dexperts", "Dola", "Edt", "Ensemble",
    "Entropix", "Grammar", "GrammarKind", "GroupBeam", "Guided", "InvalidParam", "KlGuided", "LatentThoughts",
    "LogitsParams", "LogprobsMode", "LogprobsParams", "PenaltyScope", "Pmi", "PoolBy", "Pooling", "PromptLookup",
    "RankBy", "Request", "SamplerOrder", "Sampling", "Schedule", "Sed", "StoppingParams", "StrategyParams",
    "choice_grammar", "premature_layers",
]  # fmt: skip

PARAMS: dict[str, type[StrategyParams]] = {
    each.NAME: each
    for module in pkgutil.iter_modules(__path__)
    for each in vars(importlib.import_module(f"{__name__}.{module.name}")).values()
    if isinstance(each, type) and issubclass(each, StrategyParams) and "NAME" in vars(each)
}
"""Strategy name -> its params class, of all files here: what the wire between the processes names."""
