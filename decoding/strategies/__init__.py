"""One small file per strategy; this one only finds them: a strategy's class names its params class as PARAMS."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from decoding.contract.params import Pooling, Request
from decoding.seam import Strategy, Tools
from decoding.stopping import Stopping
from decoding.strategies.latent import LatentStrategy
from decoding.strategies.scoring import ScoringStrategy

Build = Callable[[Request, Stopping, Tools], Strategy]

STRATEGIES: dict[str, Build] = {
    vars(each)["PARAMS"].NAME: each
    for module in pkgutil.walk_packages(__path__, f"{__name__}.")
    if not module.ispkg
    for each in vars(importlib.import_module(module.name)).values()
    if isinstance(each, type) and "PARAMS" in vars(each)
}


def build(request: Request, stopping: Stopping, tools: Tools) -> Strategy:
    """The strategy that `request.strategy` asks for; those that generate are all the same where nothing is to be."""
    if request.stopping.max_tokens == 0 and not isinstance(request.strategy, Pooling):
        return ScoringStrategy(request, stopping, tools)
    strategy = STRATEGIES[request.strategy.NAME](request, stopping, tools)
    return strategy if request.latent is None else LatentStrategy(request, request.latent, strategy)
