"""One small file per strategy; this one only finds them: a strategy's class names its params class as PARAMS."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import partial

from decoding.contract.params import BestOf, Pooling, Request
from decoding.contract.params.declared import MAX_INT
from decoding.contract.params.plugin import PluginStrategy
from decoding.contract.plugins import NO_PLUGINS, Plugins
from decoding.seam import Strategy, Tools
from decoding.stopping import Stopping
from decoding.strategies.best_of import BestOfStrategy
from decoding.strategies.foreign import ForeignStrategy
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


class Builder:
    """Makes the strategies that requests ask for, with plugins theirs as well. vocab_size: token ids are below it."""

    def __init__(self, plugins: Plugins = NO_PLUGINS, vocab_size: int = MAX_INT) -> None:
        self._judged: dict[str, Build] = {BestOf.NAME: partial(BestOfStrategy, judges=plugins.judges)}
        self._vocab_size = vocab_size

    def __call__(self, request: Request, stopping: Stopping, tools: Tools) -> Strategy:
        """The strategy of `request.strategy`; those that generate are all the same where nothing is to be."""
        if request.stopping.max_tokens == 0 and not isinstance(request.strategy, Pooling):
            return ScoringStrategy(request, stopping, tools)
        strategy = self._strategy(request, stopping, tools)
        return strategy if request.latent is None else LatentStrategy(request, request.latent, strategy)

    def _strategy(self, request: Request, stopping: Stopping, tools: Tools) -> Strategy:
        params = request.strategy
        if isinstance(params, PluginStrategy):
            return ForeignStrategy(request, params.decode(request, stopping, tools), self._vocab_size)
        make = self._judged.get(params.NAME) or STRATEGIES[params.NAME]
        return make(request, stopping, tools)


build = Builder()
"""Without plugins."""
