"""The decode engine: tensors and token ids. It knows nothing of HTTP, asyncio or text.

`from decoding import LLM` is a signpost: the class brings text and wire together and stands above, in `polydecode`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polydecode import LLM as LLM


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from polydecode import LLM  # noqa: PLC0415 - nothing here needs it, and it needs the server's text

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
