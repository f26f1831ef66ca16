"""Engines over given models and caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.limits import Limits
from decoding.engine.placed import Model, Placed
from decoding.engine.vocabulary import Vocabulary


def make_engine(
    models: Mapping[str, Model],
    caches: Mapping[str, PageCache],
    *,
    eos_token_ids: Sequence[int],
    token_bytes: Sequence[bytes] = (),
    special_tokens: Sequence[tuple[int, str]] = (),
    shares_prefixes: bool = True,
    launches_ahead: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **limits: int,
) -> Engine:
    placed = {name: Placed(model, caches[name]) for name, model in models.items()}
    return Engine(
        placed,
        Vocabulary(eos_token_ids, token_bytes, special_tokens),
        Limits(**limits),
        shares_prefixes=shares_prefixes,
        launches_ahead=launches_ahead,
        clock=clock,
    )
