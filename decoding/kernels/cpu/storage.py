"""How a page holds keys and values, in float32 or in bfloat16, and queries that meet them.

A page of keys is a panel, [head_dim, PAGE], so that PAGE scores are one product; a page of values is panels of so many
keys, [PAGE, v_width]. In bfloat16 pairs of numbers follow each other, [head_dim / 2, PAGE, 2] and
[PAGE / 2, v_width, 2]. A last number without a partner has 0 for one, and so has the last key's value until the next
key comes: its weight is 0, but 0 * NaN is NaN, and a page may have had another owner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import float32

from decoding.kernels.cpu.compiled import inner
from decoding.kernels.cpu.tile import PANEL, Format
from decoding.kernels.cpu.vectors import (
    LANES,
    load_first,
    load_one,
    splat,
    store,
    store_bfloat16,
    store_one,
    store_pairs,
    store_second,
    word,
)

PAGE = PANEL  # positions


@dataclass(frozen=True, slots=True)
class Storage:
    write: Callable[..., Any]
    """(a, slots, tokens, token, room): put the token's keys and values into its slot; room for a head's numbers."""
    copy_query: Callable[..., Any]
    """(source, width, target): a head's numbers, with zeros up to a multiple of PANEL."""


def turns(width: int, form: Format) -> int:
    """How many turns of a product a head's numbers take."""
    return -(-width // form.depth)


@inner
def _copy(source, width, target):
    for d in range(0, width, LANES):
        store(target + 4 * d, load_first(source + 4 * d, width - d))


@inner
def _round(source, width, target):
    for d in range(0, width, LANES):
        store_bfloat16(target + 2 * d, load_first(source + 4 * d, width - d))


@inner
def _write(a, slots, _tokens, token, _room):
    slot = word(slots, token)
    page, offset = slot // PAGE, slot % PAGE
    for head in range(a.kv_heads):
        source = a.key + token * a.key_token + head * a.key_head
        target = a.key_pages + 4 * ((page * a.kv_heads + head) * a.head_dim * PAGE + offset)
        for d in range(a.head_dim):
            store_one(target + 4 * PAGE * d, load_one(source + 4 * d))
        source = a.value + token * a.value_token + head * a.value_head
        target = a.value_pages + 4 * ((page * a.kv_heads + head) * PAGE + offset) * a.v_width
        _copy(source, a.v_head_dim, target)


@inner
def _write_rounded(a, slots, tokens, token, room):
    """Who writes the first value of a pair writes the second, too, so that no two threads change one word."""
    slot = word(slots, token)
    page, offset = slot // PAGE, slot % PAGE
    is_second = offset % 2 == 1
    has_next = not is_second and token + 1 < tokens and word(slots, token + 1) == slot + 1
    is_written = is_second and token > 0 and word(slots, token - 1) == slot - 1
    pairs = (a.head_dim + 1) // 2
    for head in range(a.kv_heads):
        _round(a.key + token * a.key_token + head * a.key_head, a.head_dim, room)
        target = a.key_pages + 4 * ((page * a.kv_heads + head) * pairs * PAGE + offset)
        for pair in range(pairs):
            store_one(target + 4 * PAGE * pair, load_one(room + 4 * pair))
        if is_written:
            continue
        source = a.value + token * a.value_token + head * a.value_head
        target = a.value_pages + 4 * ((page * a.kv_heads + head) * PAGE // 2 + offset // 2) * a.v_width
        for d in range(0, a.v_head_dim, LANES):
            v = load_first(source + 4 * d, a.v_head_dim - d)
            if is_second:
                store_second(target + 4 * d, v)
            elif has_next:
                store_pairs(target + 4 * d, v, load_first(source + a.value_token + 4 * d, a.v_head_dim - d))
            else:
                store_pairs(target + 4 * d, v, splat(float32(0)))


STORAGES = {Format.FLOAT32: Storage(_write, _copy), Format.BFLOAT16_PAIRS: Storage(_write_rounded, _round)}
