"""polydecode as a library: `from polydecode import LLM, SamplingParams`.

The server's own code decides what a request means and what comes of it; here it runs in the caller's process, without
HTTP and without a second process. Names are looked up when they are first used: the command starts by way of here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decoding.contract.params import (
        Assisted,
        Beam,
        BeamSample,
        BestFirst,
        BestOf,
        Contrastive,
        CotDecoding,
        Dola,
        Entropix,
        GroupBeam,
        Guided,
        KlGuided,
        PromptLookup,
        Sampling,
    )
    from polydecode.errors import DecodingFailed, InvalidRequest, TimedOut
    from polydecode.llm import LLM
    from polydecode.params import SamplingParams
    from polydecode.results import (
        Alternative,
        Choice,
        Delta,
        Embedding,
        Generation,
        ScoredToken,
        Scores,
        ToolCall,
        TraceStep,
        Usage,
    )
    from server.settings.settings import SettingsError
    from server.worker.model_files import ModelError

_PLACES = {
    "polydecode.llm": ("LLM",),
    "polydecode.params": ("SamplingParams",),
    "polydecode.errors": ("DecodingFailed", "InvalidRequest", "TimedOut"),
    "polydecode.results": (
        *("Alternative", "Choice", "Delta", "Embedding", "Generation", "ScoredToken", "Scores"),
        *("ToolCall", "TraceStep", "Usage"),
    ),
    "decoding.contract.params": (
        *("Assisted", "Beam", "BeamSample", "BestFirst", "BestOf", "Contrastive", "CotDecoding", "Dola", "Entropix"),
        *("GroupBeam", "Guided", "KlGuided", "PromptLookup", "Sampling"),
    ),
    "server.settings.settings": ("SettingsError",),
    "server.worker.model_files": ("ModelError",),
}
_HOMES = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "LLM", "Alternative", "Assisted", "Beam", "BeamSample", "BestFirst", "BestOf", "Choice", "Contrastive",
    "CotDecoding", "DecodingFailed", "Delta", "Dola", "Embedding", "Entropix", "Generation", "GroupBeam", "Guided",
    "InvalidRequest", "KlGuided", "ModelError", "PromptLookup", "Sampling", "SamplingParams", "ScoredToken", "Scores",
    "SettingsError", "TimedOut", "ToolCall", "TraceStep", "Usage",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
