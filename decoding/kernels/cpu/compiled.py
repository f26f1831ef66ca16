"""Compiling kernels once per machine: numba's file cache, in the user's cache directory, keyed by what the source says.

numba notices a changed file only where the entry point stands in it, so the directory's name carries the content of
every file here. A cache made on another kind of processor is not used, but made anew.

A symbol's name is that of its function and a number that numba counts up from 1 in each process, and where two kernels
have a symbol in common, the linker takes the first one's for both. Kernels from the caches of two processes would so
run each other's code, as all that one of our factories makes has one name: so each process counts from another number.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from decoding.cache_home import cache_folder
from decoding.kernels.cpu.vectors import FEATURES, LANES

FunctionIdentity._unique_ids = itertools.count(secrets.randbits(48))

# Functions called by kernels alone: without the wrappers that Python would call them by, and without exceptions.
inner = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")


def cache_directory() -> Path:
    digest = hashlib.sha256(" ".join([str(LANES), *sorted(FEATURES)]).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return cache_folder(f"kernels-{digest.hexdigest()[:12]}")


@functools.cache
def usable_directory() -> Path:
    """The cache, or, where it can only be read (a container's image), a copy for this process: numba wants to write."""
    directory = cache_directory()
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
    if os.access(directory, os.W_OK):
        return directory
    scratch = Path(tempfile.mkdtemp(prefix="polydecode-kernels-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    if directory.is_dir():
        shutil.copytree(directory, scratch, dirs_exist_ok=True)
    return scratch


class _CacheByName(FunctionCache):
    """Finds a function by its qualified name, which no other kernel may have; the directory's name says the rest.

    numba goes by what a closure holds, too: of one that holds compiled functions, that is something else in each
    process, so that it would be compiled at every start, and one more copy of it kept.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        code = hashlib.sha256(self._py_func.__code__.co_code).hexdigest()
        return sig, codegen.magic_tuple(), (self._py_func.__qualname__, code)


class Kernel:
    """A C function, compiled (or found in the cache) when its address is first asked for."""

    _names: ClassVar[set[tuple[str, str]]] = set()

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        name = function.__module__, function.__qualname__
        if name in self._names:
            raise ValueError(f"another kernel is called {'.'.join(name)}, by which the cache finds it")
        self._names.add(name)
        self._function = function
        self._signature = types.void(*arguments)

    @functools.cached_property
    def _compiled(self) -> Any:
        config.CACHE_DIR = config.CACHE_DIR or str(usable_directory())
        try:
            signature = self._signature.args, self._signature.return_type
            kernel: Any = CFunc(self._function, signature, locals={}, options={"error_model": "numpy"})
            kernel._cache = _CacheByName(self._function)  # what numba.cfunc does, but for the kind of cache
            kernel.compile()
            return kernel
        except (RuntimeError, OSError):  # "no locator available": nowhere to write
            return numba.cfunc(self._signature, error_model="numpy")(self._function)

    @property
    def address(self) -> int:
        return int(self._compiled.address)


def kernel(record: np.dtype[Any]) -> Callable[[Callable[[Any], None]], Kernel]:
    """Decorates a function of a pointer to a record."""
    return lambda function: Kernel(function, types.CPointer(numba.from_dtype(record)))


def kernel_of_counts(number: int, variant: str = "") -> Callable[[Callable[..., None]], Kernel]:
    """Decorates a function of so many counts or addresses, which other kernels call by its address (`call_at`).

    It is compiled once, where an `inner` one is compiled again into every kernel that calls it. variant: apart from
    others of one factory.
    """

    def decorate(function: Callable[..., None]) -> Kernel:
        function.__qualname__ += variant and f"_{variant}"
        return Kernel(function, *[types.int64] * number)

    return decorate


@intrinsic
def call_at(_context: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at an address with a tuple of counts or addresses."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        numbers = cgutils.unpack_tuple(builder, args[1])
        kind = ir.FunctionType(ir.VoidType(), [number.type for number in numbers])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), numbers)

    return types.void(types.int64, types.UniTuple(types.int64, len(arguments))), build


@intrinsic
def address_of(_context: Any, pointer: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), build


def reader(record: np.dtype[Any]) -> Any:
    """An intrinsic that turns an address into a pointer to such a record."""
    kind = types.CPointer(numba.from_dtype(record))

    @intrinsic
    def at(_context: Any, address: Any) -> Any:
        def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], _target.get_value_type(kind))

        return kind(types.int64), build

    return at


def record(**fields: str) -> np.dtype[Any]:
    """A record type; a field's type is `address`, `count` or `float`."""
    kinds = {"address": np.int64, "count": np.int64, "float": np.float64}
    return np.dtype([(name, kinds[kind]) for name, kind in fields.items()])
