"""What decodes of each plugin is begun once before the server says that it is ready: the half that it never reads."""

from __future__ import annotations

import random
from collections.abc import Iterator

from decoding.contract.params import LogitsParams, Request
from decoding.contract.plugin_samples import NoSample, Vocabulary, sample
from decoding.contract.plugins import Candidate, Plugin, PluginError, Plugins
from decoding.engine.engine import Build, Engine

PROMPT = (0,)


def try_plugins(plugins: Plugins, engine: Engine, build: Build, vocabulary: Vocabulary) -> None:
    """Raises PluginError where one cannot even begin; no model runs for it."""
    for plugin in plugins.plugins:
        for request in _requests(plugin, vocabulary):
            error = engine.error_of(request, build)
            if error is not None:
                raise PluginError(f"plugin {plugin.name}: {type(error).__name__}: {error}") from error
        for judge in plugin.judges:
            try:
                judge.scores(b"", [Candidate(PROMPT, (0.0,), b"")])
            except Exception as error:
                raise PluginError(f"plugin {plugin.name}: {type(error).__name__}: {error}") from error


def _requests(plugin: Plugin, vocabulary: Vocabulary) -> Iterator[Request]:
    """One of each strategy and step for which parameters are found."""
    rng = random.Random(0)
    for kind in (*(strategy.params for strategy in plugin.strategies), *plugin.steps):
        try:
            params = sample(rng, kind, vocabulary)
        except NoSample:
            continue
        if kind in plugin.steps:
            yield Request(PROMPT, logits=LogitsParams(plugin_steps=(params,)))
        else:
            yield Request(PROMPT, params)
