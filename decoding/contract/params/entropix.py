"""entropix: the sampler picks its own parameters from entropy and varentropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from decoding.contract.params.base import StrategyParams
from decoding.contract.params.declared import PROBABILITY, FromModel, Says, TokenId, Within

THRESHOLD = Within(0, 1000)


@dataclass(frozen=True, slots=True)
class Entropix(StrategyParams):
    """Thresholds and factors of xjdr-alt/entropix's four-quadrant sampler (entropies in bits).

    compat: its defects are min_p without effect, and a nucleus over ascending probabilities.
    """

    NAME = "entropix"
    WITHIN = "entropix"

    # fmt: off
    think_token_id: Annotated[
        TokenId | None, FromModel(None), Says("Injected where the model is uncertain; default: sampled there instead."),
    ] = None
    compat: Annotated[bool, Says("Reproduce the reference's two defects.")] = False
    uses_attention: Annotated[bool, Says("Whether attention entropy and agreement count.")] = True
    temperature: Annotated[float, THRESHOLD, Says("Base temperature.")] = 0.666
    top_p: Annotated[float, PROBABILITY, Says("Base top-p.")] = 0.9
    top_k: Annotated[int, Within(1, 100), Says("Base top-k.")] = 27
    min_p: Annotated[float, PROBABILITY, Says("Base min-p.")] = 0.03
    low_entropy: Annotated[float, THRESHOLD, Says("Below: entropy is low.")] = 0.1
    low_varentropy: Annotated[float, THRESHOLD, Says("Below: varentropy is low.")] = 0.1
    medium_entropy: Annotated[float, THRESHOLD, Says("Above: entropy is not low.")] = 3.0
    high_entropy: Annotated[float, THRESHOLD, Says("Above: entropy is high.")] = 5.0
    high_varentropy: Annotated[float, THRESHOLD, Says("Above: varentropy is high.")] = 5.0
    num_adaptive_samples: Annotated[int, Within(1, 32), Says("Draws of the adaptive branch.")] = 5
    # fmt: on
