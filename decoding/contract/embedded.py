"""The model that is served where none is named."""

from __future__ import annotations

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
