"""What one request asks of the engine: frozen, validated on construction, free of torch.

`server/translate.py` builds these from a wire request and `decoding/worker.py` hands them to the engine.
One params class per strategy; the fields every strategy shares (logits pipeline, stopping, log-probs) stand beside it
in `Request`. Everything here is per request: nothing is ever shared by a batch.
"""

from decoding.params.beams import Beam, BeamSample, BestFirst, GroupBeam
from decoding.params.branches import CotDecoding, Sed
from decoding.params.contrastive import Contrastive
from decoding.params.dola import Dola, premature_layers
from decoding.params.entropix import Entropix
from decoding.params.grammar import Grammar, GrammarKind, choice_grammar
from decoding.params.guidance import Guided, KlGuided
from decoding.params.invalid import InvalidParam
from decoding.params.latent import LatentThoughts
from decoding.params.logits import Adapt, Edt, LogitsParams, PenaltyScope, SamplerOrder
from decoding.params.logprobs import LogprobsMode, LogprobsParams
from decoding.params.pooling import PoolBy, Pooling
from decoding.params.request import DRAFT, MAIN, MAX_SEED, PARAMS, Request, StrategyParams
from decoding.params.sampling import BestOf, RankBy, Sampling
from decoding.params.speculation import Assisted, PromptLookup, Schedule
from decoding.params.stopping import StoppingParams

__all__ = [
    "DRAFT", "MAIN", "MAX_SEED", "PARAMS", "Adapt", "Assisted", "Beam", "BeamSample", "BestFirst", "BestOf",
    "Contrastive", "CotDecoding", "Dola", "Edt", "Entropix", "Grammar", "GrammarKind", "GroupBeam", "Guided",
    "InvalidParam", "KlGuided", "LatentThoughts", "LogitsParams", "LogprobsMode", "LogprobsParams", "PenaltyScope",
    "PoolBy", "Pooling", "PromptLookup", "RankBy", "Request", "SamplerOrder", "Sampling", "Schedule", "Sed",
    "StoppingParams", "StrategyParams", "choice_grammar", "premature_layers",
]  # fmt: skip
