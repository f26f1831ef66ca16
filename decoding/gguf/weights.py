"""A GGUF file's tensors as model.safetensors: dequantised by gguf, queries and keys in transformers' order.

Rounded to bfloat16 (to nearest even) unless the file holds them in float32 or float16 and bfloat16 would lose digits.
Written by hand, some rows at a time: safetensors' numpy front end has no bfloat16, and a model may outgrow the memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants

from decoding.gguf.architecture import Place
from decoding.gguf.reader import Reader, UnsupportedFile

Report = Callable[[str, float], None]  # (stage, fraction of it)

BLOCK = 1 << 22  # numbers dequantised at once: few enough to stay in the processor's cache, mostly
IGNORED = ("rope_freqs.weight",)  # said by the configuration
PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)


class Form(Enum):
    """How numbers are written; the value is safetensors' name."""

    FLOAT32 = "F32"
    FLOAT16 = "F16"
    BFLOAT16 = "BF16"

    @property
    def size(self) -> int:
        return 4 if self is Form.FLOAT32 else 2

    def encode(self, values: np.ndarray) -> bytes:  # float32
        if self is Form.FLOAT32:
            return values.astype("<f4").tobytes()
        return values.astype("<f2").tobytes() if self is Form.FLOAT16 else _bfloat16(values)


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the file, what it becomes, and how that is written."""

    tensor: gguf.ReaderTensor
    place: Place
    form: Form

    @property
    def num_bytes(self) -> int:
        return self.form.size * int(self.tensor.n_elements)


def weights_of(reader: Reader, places: Mapping[str, Place]) -> list[Weight]:
    """In the file's order. Raises UnsupportedFile unless each is there, in its shape and readable, and no other is."""
    tensors = [tensor for tensor in reader.tensors if tensor.name not in IGNORED]
    names = {tensor.name for tensor in tensors}
    if missing := [name for name in places if name not in names]:
        raise UnsupportedFile(f"the GGUF file lacks the tensor {missing[0]}")
    for tensor in tensors:
        _check(tensor, places)
    return [Weight(tensor, places[tensor.name], _form(tensor, places[tensor.name])) for tensor in tensors]


def dtype_of(weights: Sequence[Weight]) -> str:
    """transformers' name of what all matrices fit into."""
    forms = {weight.form for weight in weights if len(weight.place.shape) > 1}
    if Form.FLOAT32 in forms:
        return "float32"
    return "float16" if forms == {Form.FLOAT16} else "bfloat16"


def write_weights(weights: Sequence[Weight], path: Path, report: Report) -> None:
    """Raises OSError where the disk has no room."""
    _check_room(path, sum(weight.num_bytes for weight in weights))
    header = _header(weights)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for done, weight in enumerate(weights, start=1):
            for values in numbers(weight.tensor, weight.place):
                file.write(weight.form.encode(values))
            report("dequantising the weights", done / len(weights))


def numbers(tensor: gguf.ReaderTensor, place: Place) -> Iterator[np.ndarray]:  # float32, some rows each
    """The tensor as transformers has it, from its first row to its last."""
    rows = tensor.data.reshape(place.shape[0], -1)
    # The pairs of a head lie in that head, so whole heads can be put in order apart from the others.
    unit = len(rows) // place.heads if place.heads else 1
    step = unit * max(1, BLOCK // (unit * max(1, tensor.n_elements // len(rows))))
    for start in range(0, len(rows), step):
        values = _dequantised(rows[start : start + step], tensor.tensor_type)
        values = _split_pairs(values, unit) if place.heads else values
        yield values + np.float32(place.offset) if place.offset else values


def _dequantised(rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:  # float32 [rows, columns]
    if kind in PLAIN:
        return np.asarray(rows, np.float32)
    # All rows at once: `gguf.dequantize` goes 16 at a time, which takes three times as long.
    reading: Any = quants._type_traits[kind]
    reading.init_grid()
    values: np.ndarray = reading.dequantize_rows(rows)
    return values


def _split_pairs(rows: np.ndarray, head_dim: int) -> np.ndarray:  # [heads * head_dim, columns]
    """GGUF interleaves a head's rotary pairs; transformers keeps the two halves apart."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _form(tensor: gguf.ReaderTensor, place: Place) -> Form:
    kind = tensor.tensor_type
    if kind not in PLAIN or all(_fits_bfloat16(values) for values in numbers(tensor, place)):
        return Form.BFLOAT16
    return Form.FLOAT16 if kind == GGMLQuantizationType.F16 else Form.FLOAT32


def _check(tensor: gguf.ReaderTensor, places: Mapping[str, Place]) -> None:
    """Raises UnsupportedFile."""
    name, kind = tensor.name, tensor.tensor_type
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if name not in places:
        raise UnsupportedFile(f"the GGUF file holds an unknown tensor {name!r}")
    if shape != places[name].shape:
        raise UnsupportedFile(f"the GGUF file's {name} is of shape {shape}, not {places[name].shape}")
    if kind not in PLAIN and kind not in quants._type_traits:
        raise UnsupportedFile(f"the GGUF file's {name} is of type {kind.name}, which cannot be read")


def _header(weights: Sequence[Weight]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        start, end = end, end + weight.num_bytes
        place = weight.place
        entries[place.name] = {"dtype": weight.form.value, "shape": place.shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    return header + b" " * (-len(header) % 8)


def _check_room(path: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes:
        needed = f"{num_bytes / 2**30:.1f} GiB where {free / 2**30:.1f} are free"
        raise OSError(f"no room in {path.parent.parent} for the model's dequantised weights: {needed}")


def _fits_bfloat16(values: np.ndarray) -> bool:
    return not (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) & 0xFFFF).any()


def _bfloat16(values: np.ndarray) -> bytes:
    """numpy has no bfloat16: the upper half of the float32 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return upper.astype("<u2").tobytes()
