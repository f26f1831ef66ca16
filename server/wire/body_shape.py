"""How much a JSON body holds, counted in its bytes: a parser turns megabytes of brackets into millions of objects,
and stops the event loop for seconds with it.

Exact for JSON; of other bytes it says something, and the parser refuses them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BodyShape:
    """num_values: an upper bound, of every kind. num_parts: strings (names too), lists and objects, if they are
    counted on. num_fields: names in objects, each as often as it stands there."""

    num_values: int
    num_parts: int
    num_fields: int


def shape_of(body: bytes, max_parts: int) -> BodyShape:
    """Stops at the strings when they alone are too many: dividing the body by them would be work, too."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    num_strings = plain.count(b'"') // 2
    if num_strings > max_parts:
        return BodyShape(num_strings, num_strings, 0)
    outside = b"".join(plain.split(b'"')[::2])
    num_containers = outside.count(b"[") + outside.count(b"{")
    return BodyShape(
        num_values=outside.count(b",") + num_containers + 1,
        num_parts=num_strings + num_containers,
        num_fields=outside.count(b":"),
    )
