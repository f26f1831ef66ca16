"""Engines over tiny encoder-decoder models, and requests to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from decoding.contract.params import LogitsParams, Request, Sampling, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.engines import make_engine
from tests.goldens.seq2seq import MODELS, Seq2SeqSpec, build, perturbed_twin

SPECS = {spec.name: spec for spec in MODELS}
MOST_PAGES = 400


@cache
def model(name: str, draft_noise: int = 0) -> Model:
    wrapped = wrap(perturbed_twin(SPECS[name], draft_noise) if draft_noise else build(SPECS[name]))
    wrapped.attention.allocate(MOST_PAGES)
    return wrapped


def engine(name: str, *, num_pages: int = MOST_PAGES, draft_noise: int = 0, **options: Any) -> Engine:
    """With a draft model where there is noise to make one by."""
    models = {"main": model(name)} | ({"draft": model(name, draft_noise)} if draft_noise else {})
    caches = {key: PageCache(num_pages, each.attention.page_size) for key, each in models.items()}
    options.setdefault("max_rows", 64)
    return make_engine(models, caches, eos_token_ids=SPECS[name].eos_token_ids, **options)


def request(spec: Seq2SeqSpec, source: Sequence[int], max_tokens: int = 12, **options: Any) -> Request:
    """Greedy unless told otherwise."""
    options.setdefault("strategy", Sampling())
    options.setdefault("logits", LogitsParams(temperature=0))
    options.setdefault("stopping", StoppingParams(max_tokens))
    options.setdefault("prompt_ids", (spec.start,))
    return Request(source_ids=tuple(source), **options)
