"""A file of tensors and a text that describes them, every byte that is used under a digest. Knows nothing of models.

Read, the tensors lie in huge pages like weights that were just packed. Mapped from the file they would be shared with
other processes, but in pages of 4 KiB, and a decode step of few rows reads all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from decoding.kernels.cpu.arena import LINE, huge_pages
from decoding.worker.kept.checksums import digests, spans

MAGIC = b"polydecode kept 1\n"
DIGEST_BYTES = 32
MAX_HEADER = 64 << 20
FREE_SHARE = 2  # so many times the file must fit into what is free
DTYPES = {str(kind).removeprefix("torch."): kind for kind in (
    torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)}  # fmt: skip


class Damaged(ValueError):
    """The file is not what was written; says how."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One tensor. start: of its bytes, behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    digests: list[str]


class Header(msgspec.Struct, frozen=True):
    description: str
    size: int  # of all that follows
    tensors: list[Entry]


def write(path: Path, description: str, tensors: Sequence[torch.Tensor]) -> None:
    """In one step: whoever looks finds the whole file or none. Raises OSError, also where the disk is nearly full."""
    entries, end = [], 0
    for tensor in tensors:
        entries.append(_entry(tensor, end))
        end += -(-entries[-1].size // LINE) * LINE
    header = msgspec.json.encode(Header(description, end, entries))
    head = MAGIC + len(header).to_bytes(8, "little") + hashlib.sha256(header).digest() + header
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < FREE_SHARE * (len(head) + end):
        raise OSError("too little is free")
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            file.write(head)
            for tensor, entry in zip(tensors, entries, strict=True):
                file.seek(len(head) + entry.start)
                file.write(_bytes(tensor))
            file.truncate(len(head) + end)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise


def read(path: Path) -> tuple[str, list[torch.Tensor]]:
    """The description and the tensors. Raises OSError, and Damaged where a bit has changed."""
    with path.open("rb", buffering=0) as file:
        header, behind = _header(file.fileno())
        if os.fstat(file.fileno()).st_size != behind + header.size:
            raise Damaged("has another length")
        data = huge_pages(header.size)[: header.size]
        view = _view(data)

        def fill(start: int, length: int) -> memoryview:
            part = view[start : start + length]
            if os.preadv(file.fileno(), [part], behind + start) != length:
                raise Damaged("ends too early")
            return part

        wanted = [digest for entry in header.tensors for digest in entry.digests]
        chunks = itertools.chain.from_iterable(spans(entry.size, entry.start) for entry in header.tensors)
        if digests(list(chunks), fill) != wanted:
            raise Damaged("holds other bytes")
    return header.description, [_tensor(data, entry) for entry in header.tensors]


def _header(descriptor: int) -> tuple[Header, int]:
    """And where what it describes begins."""
    fixed = len(MAGIC) + 8 + DIGEST_BYTES
    head = os.pread(descriptor, fixed, 0)
    length = int.from_bytes(head[len(MAGIC) : len(MAGIC) + 8], "little")
    if len(head) < fixed or not head.startswith(MAGIC) or length > MAX_HEADER:
        raise Damaged("begins otherwise")
    text = os.pread(descriptor, length, fixed)
    if hashlib.sha256(text).digest() != head[-DIGEST_BYTES:]:
        raise Damaged("has another header")
    return msgspec.json.decode(text, type=Header), fixed + length


def _entry(tensor: torch.Tensor, start: int) -> Entry:
    data = _bytes(tensor)
    found = digests(spans(len(data)), lambda at, length: data[at : at + length])
    return Entry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), start, len(data), found)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return _view(tensor.detach().contiguous().flatten().view(torch.uint8))


def _view(data: torch.Tensor) -> memoryview:  # uint8 [n]
    return memoryview(data.numpy())  # type: ignore[arg-type]


def _tensor(data: torch.Tensor, entry: Entry) -> torch.Tensor:
    dtype = DTYPES[entry.dtype]
    if entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise Damaged("has a table that does not add up")
    return data[entry.start : entry.start + entry.size].view(dtype).view(entry.shape)
