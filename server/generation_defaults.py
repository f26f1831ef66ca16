"""What a model's generation_config.json recommends, for requests that do not say otherwise (--generation-defaults)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from server.combinations import FILTERS
from server.errors import ApiError
from server.mode import keys_of, mode_of, warps
from server.model_files import ModelError
from server.protocol import CompletionRequest, Decoding
from server.wire import at

FIELDS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "no_repeat_ngram_size",
)  # fmt: skip

WARPING = ("temperature", *FILTERS)
"""No recommendation for a request that draws nothing."""

Request = TypeVar("Request", bound=Decoding)


def recommended(directory: Path) -> dict[str, Any]:
    """The fields that the model's file sets. Raises ModelError on a file or a value that cannot be."""
    file = directory / "generation_config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found = {name: values[name] for name in FIELDS if values.get(name) is not None}
        CompletionRequest.model_validate({"prompt": "x", **found})
    except ValidationError as failure:
        name = failure.errors()[0]["loc"][0]
        raise ModelError(f"the model's generation_config.json has a {name} that cannot be") from None
    except (OSError, ValueError, AttributeError):
        raise ModelError("the model's generation_config.json cannot be read") from None
    return found


def with_defaults(wire: Request, defaults: Mapping[str, Any]) -> Request:
    """The request with every default that it says nothing of and that has a meaning beside what it says."""
    method = mode_of(wire) if defaults else None
    for name, value in defaults.items():
        if at(wire, name) is None and (name not in WARPING or warps(keys_of(wire), mode_of(wire))):
            filled = wire.model_copy(update={name: value})
            try:
                wire = filled if mode_of(filled) is method else wire
            except ApiError:  # the strategy that was asked for does not take it
                continue
    return wire
