"""Several models in lock step, whose scores make one distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from decoding.contract.params.base import MAIN, Choices, StrategyParams
from decoding.contract.params.declared import ModelName, Says, Within
from decoding.contract.params.invalid import check

Weight = Annotated[float, Within(gt=0, le=100)]


@dataclass(frozen=True, slots=True)
class ContrastiveDecoding(StrategyParams):
    """The model's log-probs less those of a weaker one, where the model finds the token plausible."""

    NAME = "contrastive_decoding"
    WITHIN = "contrastive_decoding"

    # fmt: off
    amateur: Annotated[ModelName, Says("The weaker model, by its name at this server.")]
    alpha: Annotated[
        float, Within(gt=0, le=1), Says("Tokens less than so many times as likely as the likeliest are excluded."),
    ] = 0.1
    beta: Annotated[
        float | None, Within(0, 100), Says("(1 + beta) times the model's scores less beta times the amateur's; null: "
        "the difference of their log-probs."),
    ] = None
    tau: Annotated[float, Within(0.01, 100), Says("The amateur's temperature.")] = 1.0
    n: Choices = 1
    # fmt: on


@dataclass(frozen=True, slots=True)
class Dexperts(StrategyParams):
    """The model's logits, plus alpha times what an expert's have over an anti-expert's."""

    NAME = "dexperts"
    WITHIN = "dexperts"

    # fmt: off
    expert: Annotated[ModelName, Says("The model to resemble: for proxy tuning the small tuned one.")]
    anti_expert: Annotated[ModelName, Says("The model to differ from: for proxy tuning the small one as it was.")]
    alpha: Annotated[float, Within(0, 100), Says("The weight of their difference.")] = 1.0
    n: Choices = 1
    # fmt: on


@dataclass(frozen=True, slots=True)
class Ensemble(StrategyParams):
    """A product of experts: the weighted sum of the log-probs of several models."""

    NAME = "ensemble"
    WITHIN = "ensemble"

    # fmt: off
    models: Annotated[tuple[ModelName, ...], Says("The models beside the main one, by their names at this server.")]
    weights: Annotated[
        tuple[Weight, ...],
        Says("The main model's weight, then one for each of models; default: equal ones that add up to 1."),
    ] = ()
    n: Choices = 1
    # fmt: on

    def _check(self) -> None:
        several = (MAIN, *self.models)
        check(len(several) > 1, "ensemble.models", "must name at least one model")
        check(len(set(several)) == len(several), "ensemble.models", f"must not name {MAIN}, or a model twice")
        check(len(self.weights) in (0, len(several)), "ensemble.weights", f"must hold {len(several)} weights")
