"""A JSON value as the data of one event.

JSON escapes line ends but U+0085, U+2028 and U+2029. Python's `splitlines` ends lines there too, and so does httpx's
`aiter_lines`, with which many read events: half an event is no JSON. Escaped they mean the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

_ESCAPES = tuple((mark.encode(), f"\\u{ord(mark):04x}".encode()) for mark in "\x85\u2028\u2029")
_encoder = msgspec.json.Encoder()


def event_line(value: Any) -> bytes:
    """`data:` and the value, with the blank line that ends the event."""
    data = _encoder.encode(value)
    if not data.isascii():
        for mark, escape in _ESCAPES:
            data = data.replace(mark, escape)
    return b"data: " + data + b"\n\n"
