"""The most that the engine runs, and which requests can never run within it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from decoding.contract.params import Request
from decoding.engine.cache import PageCache
from decoding.engine.output import Failure
from decoding.engine.placed import Placed


@dataclass(frozen=True, slots=True)
class Limits:
    max_rows: int = 256  # that may live at once
    tick_tokens: int = 512  # of long feeds (prefill) in one tick
    max_model_len: int = 1 << 30  # positions of a row


def refusal(request: Request, placed: Mapping[str, Placed], limits: Limits) -> Failure | None:
    """Why the request can never run here, if so."""
    for name in request.max_rows_in:
        if name not in placed:
            return Failure("no_model", f"the request needs a {name} model and the server has none")
    for name in request.max_rows_in:
        has_encoder = placed[name].model.encoder is not None
        if has_encoder != bool(request.source_ids):
            return Failure("no_model", f"the {name} model {'needs' if has_encoder else 'cannot read'} a source")
    if not _fits(request, placed, limits):
        return Failure("never_fits", "the request needs more KV cache or rows than the server has")
    return None


def _fits(request: Request, placed: Mapping[str, Placed], limits: Limits) -> bool:
    """Whether the request can possibly run, alone.

    One that may end early is tried; it is ended when it outgrows a cache all the same.
    """
    encoders = [each.model.encoder for each in placed.values() if each.model.encoder is not None]
    return (
        request.max_rows <= limits.max_rows
        and request.max_length <= limits.max_model_len
        and all(len(source) <= encoder.max_source_len for encoder in encoders for source in request.sources)
        and all(_can_hold(placed[name].cache, request, count) for name, count in request.max_rows_in.items())
    )


def _can_hold(cache: PageCache, request: Request, num_rows: int) -> bool:
    """Whether so many rows fit at the length they take for sure, full prompt pages and the sources' shared."""
    shared = len(request.prompt_ids) // cache.page_size
    own = cache.pages_for(request.certain_length) - shared
    usable = cache.num_usable - sum(cache.pages_for(len(source)) for source in request.sources)
    return cache.pages_for(request.max_length) <= usable and shared + num_rows * own <= usable
