"""How much one request may ask for: checked before the queue, and shown by /v1/strategies by the serialised names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.settings.sections import LimitSettings, NetworkSettings, QueueSettings

_NETWORK: Mapping[str, Any] = NetworkSettings.model_fields
_QUEUE: Mapping[str, Any] = QueueSettings.model_fields


class Limits(LimitSettings):
    """Their own section, and what other sections say of one request."""

    max_body_bytes: int = _NETWORK["max_body_bytes"]
    allow_priority: bool = _QUEUE["allow_priority"]
