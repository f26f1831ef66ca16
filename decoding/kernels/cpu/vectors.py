"""LANES floats at a time, in code that numba compiles: a vector type, its arithmetic, and loads from raw addresses.

Explicit vectors instead of loops left to the compiler: what is summed in which order must never depend on how a loop
happened to be vectorised. Every operation here rounds as IEEE says; `fma` is the only one that fuses.
"""

from __future__ import annotations

import operator
import os
import platform
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

PORTABLE_LANES = 8


def _features() -> frozenset[str]:
    """Of the processor, by LLVM's names. KERNEL_FEATURES, names with commas between, takes others."""
    told = os.environ.get("KERNEL_FEATURES")
    if told is not None:
        return frozenset(told.split(","))
    return frozenset(name for name, is_there in binding.get_host_cpu_features().items() if is_there)


def _lanes() -> int:
    """As many as one of its registers holds, or KERNEL_LANES: LLVM takes vectors of any width on any machine."""
    is_wide = {"avx512f", "avx512bw", "avx512vl"} <= FEATURES
    return int(os.environ.get("KERNEL_LANES", 16 if is_wide else PORTABLE_LANES))


# No result depends on either: with fewer features or lanes, other instructions compute the same bits.
FEATURES = _features()
LANES = _lanes()

_inner = njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
F32 = ir.FloatType()
I32, I64 = ir.IntType(32), ir.IntType(64)
F32S, I32S = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
I16S = ir.VectorType(ir.IntType(16), 2 * LANES)
_HAS_PAIRS = {"avx512bf16", "avx512vl"} <= FEATURES
_PMADD = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
_PMADD_NEEDS = {8: "avx2", 16: "avx512bw"}
_IS_X86 = platform.machine() in ("x86_64", "AMD64")
_HAS_FOURS = _IS_X86 and ({"avx512vnni", "avx512vl"} <= FEATURES or (LANES == PORTABLE_LANES and "avxvnni" in FEATURES))
INPUT_BYTES = 1 if _HAS_FOURS else 2  # of a row's whole number: as add_fours takes it


class Vector(types.Type):
    """LANES float32 numbers in one register."""

    def __init__(self) -> None:
        super().__init__(name=f"Vector{LANES}")


VECTOR = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, F32S)


def pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType())


def floats_at(builder: Any, address: Any) -> Any:
    return builder.load(pointer(builder, address), align=4, typ=F32S)


def call_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), (a, b, c))


def _call_rint(builder: Any, vector: Any) -> Any:
    kind = ir.FunctionType(F32S, [F32S])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32"), (vector,))


def multiply_pairs(builder: Any, a: Any, b: Any) -> Any:
    """a[2i] * b[2i] + a[2i + 1] * b[2i + 1] as int32, for int16 a and b [2 * LANES], not all of them -2^15."""
    if _IS_X86 and _PMADD_NEEDS[LANES] in FEATURES:
        kind = ir.FunctionType(I32S, [I16S, I16S])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, _PMADD[LANES]), (a, b))
    wide = ir.VectorType(I32, 2 * LANES)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    undefined = ir.Constant(wide, ir.Undefined)
    even, odd = (ir.Constant(I32S, list(range(first, 2 * LANES, 2))) for first in (0, 1))
    return builder.add(*(builder.shuffle_vector(products, undefined, part) for part in (even, odd)))


def add_fours(builder: Any, sums: Any, weights: Any, row: Any) -> Any:
    """sums + weights[4i] * row[0] + … + weights[4i + 3] * row[3] as int32, for bytes 0 … 255 in the words of `weights`
    [LANES] and the numbers -127 … 127 at the address `row`, where store_inputs has put them.
    """
    if _HAS_FOURS:
        kind = ir.FunctionType(I32S, [I32S, I32S, I32S])
        name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"  # LLVM makes AVX-VNNI's of it where there is no AVX-512
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, (sums, weights, _splat_word(builder, row, 0)))
    low = builder.and_(weights, ir.Constant(I32S, [0x00FF00FF] * LANES))
    high = builder.and_(builder.lshr(weights, ir.Constant(I32S, [8] * LANES)), ir.Constant(I32S, [0x00FF00FF] * LANES))
    for offset, half in ((0, low), (4, high)):
        numbers = builder.bitcast(_splat_word(builder, row, offset), I16S)
        sums = builder.add(sums, multiply_pairs(builder, builder.bitcast(half, I16S), numbers))
    return sums


def _splat_word(builder: Any, address: Any, offset: int) -> Any:
    address = builder.add(address, ir.Constant(I64, offset))
    return splat_scalar(builder, builder.load(pointer(builder, address), align=4, typ=I32))


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def add_pairs(builder: Any, sums: Any, a: Any, b: Any) -> Any:
    """(sums + a[2i + 1] * b[2i + 1]) + a[2i] * b[2i], for pairs of bfloat16 in the words of a and b [LANES]."""
    if _HAS_PAIRS:
        pairs = ir.VectorType(_BFloat(), 2 * LANES)
        kind = ir.FunctionType(F32S, [F32S, pairs, pairs])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, (sums, builder.bitcast(a, pairs), builder.bitcast(b, pairs)))
    mask, shift = ir.Constant(I32S, [0xFFFF0000] * LANES), ir.Constant(I32S, [16] * LANES)
    odd, even = (
        [builder.bitcast(half, F32S) for half in halves]
        for halves in ((builder.and_(a, mask), builder.and_(b, mask)), (builder.shl(a, shift), builder.shl(b, shift)))
    )
    return call_fma(builder, even[0], even[1], call_fma(builder, odd[0], odd[1], sums))


def _all_lanes(number: int) -> Any:
    return ir.Constant(I32S, [number] * LANES)


def _bfloat16_bits(builder: Any, vector: Any) -> Any:
    """The nearest bfloat16 numbers, ties to even, each in the low half of a word."""
    bits = builder.bitcast(vector, I32S)
    odd = builder.and_(builder.lshr(bits, _all_lanes(16)), _all_lanes(1))
    rounded = builder.add(builder.add(bits, _all_lanes(0x7FFF)), odd)
    quiet = builder.or_(bits, _all_lanes(0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", vector, vector), quiet, rounded)
    return builder.lshr(kept, _all_lanes(16))


def splat_scalar(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    vector = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(vector, undefined, ir.Constant(I32S, [0] * LANES))


def _binary(name: str) -> Any:
    @intrinsic
    def operation(_context: Any, a: Any, b: Any) -> Any:
        def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return VECTOR(VECTOR, VECTOR), build

    return operation


_ARITHMETIC = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}


def _overload(symbol: Any, operation: Any) -> None:
    @overload(symbol)
    def of_vectors(a, b):  # numba compares the signatures, annotations included
        if a == VECTOR and b == VECTOR:
            return lambda a, b: operation(a, b)  # noqa: PLW0108 - numba compiles what is returned
        return None


for _symbol, _name in _ARITHMETIC.items():
    _overload(_symbol, _binary(_name))


@intrinsic
def load(_context: Any, address: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return floats_at(builder, args[0])

    return VECTOR(types.int64), build


@intrinsic
def load_first(_context: Any, address: Any, count: Any) -> Any:
    """The first `count` numbers at the address and zeros behind them; nothing further is read."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        flags = ir.VectorType(ir.IntType(1), LANES)
        kind = ir.FunctionType(F32S, [ir.PointerType(), I32, flags, F32S])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
        count = splat_scalar(builder, builder.trunc(args[1], I32))
        inside = builder.icmp_signed("<", ir.Constant(I32S, list(range(LANES))), count)
        zeros = ir.Constant(F32S, [0.0] * LANES)
        return builder.call(function, [pointer(builder, args[0]), ir.Constant(I32, 4), inside, zeros])

    return VECTOR(types.int64, types.int64), build


@intrinsic
def prefetch(_context: Any, address: Any) -> Any:
    """Ask for the cache line at the address, which will be read."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(I32, hint) for hint in (0, 3, 1)]  # to read, keep near, data
        builder.call(function, [pointer(builder, args[0]), *hints])

    return types.void(types.int64), build


@intrinsic
def store(_context: Any, address: Any, vector: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[1], pointer(builder, args[0]), align=4)

    return types.void(types.int64, VECTOR), build


@intrinsic
def fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return call_fma(builder, *args)

    return VECTOR(VECTOR, VECTOR, VECTOR), build


@intrinsic
def splat(_context: Any, scalar: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return splat_scalar(builder, args[0])

    return VECTOR(types.float32), build


@intrinsic
def nearest(_context: Any, vector: Any) -> Any:
    """The nearest whole numbers, ties to even, still as float32."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _call_rint(builder, args[0])

    return VECTOR(VECTOR), build


@intrinsic
def store_inputs(_context: Any, address: Any, vector: Any) -> Any:
    """Whole numbers -127 … 127 as `add_fours` takes them, INPUT_BYTES each; anything, where a lane is none of those.

    Without its instruction they are int16, and of each four the two in the middle change places.
    """

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        numbers = builder.trunc(builder.fptosi(args[1], I32S), ir.VectorType(ir.IntType(8 * INPUT_BYTES), LANES))
        if not _HAS_FOURS:
            order = ir.Constant(I32S, [four + k for four in range(0, LANES, 4) for k in (0, 2, 1, 3)])
            numbers = builder.shuffle_vector(numbers, numbers, order)
        builder.store(numbers, pointer(builder, args[0]), align=INPUT_BYTES)

    return types.void(types.int64, VECTOR), build


@intrinsic
def whole_total(_context: Any, vector: Any) -> Any:
    """The sum of whole numbers."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [I32S])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{LANES}i32")
        return builder.call(function, (builder.fptosi(args[0], I32S),))

    return types.int32(VECTOR), build


@intrinsic
def store_int32(_context: Any, address: Any, number: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], I32), pointer(builder, args[0]), align=4)

    return types.void(types.int64, types.int64), build


@intrinsic
def store_bfloat16(_context: Any, address: Any, vector: Any) -> Any:
    """The nearest bfloat16 numbers, ties to even."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        short = builder.trunc(_bfloat16_bits(builder, args[1]), ir.VectorType(ir.IntType(16), LANES))
        builder.store(short, pointer(builder, args[0]), align=2)

    return types.void(types.int64, VECTOR), build


@intrinsic
def store_normal_bfloat16(_context: Any, address: Any, vector: Any) -> Any:
    """The same for numbers that are zero or normal, as the processor does it, which takes all others for zero."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        shorts = ir.VectorType(ir.IntType(16), LANES)
        if _HAS_PAIRS and LANES > PORTABLE_LANES:
            kind = ir.FunctionType(ir.VectorType(_BFloat(), LANES), [F32S])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtneps2bf16.512")
            short = builder.bitcast(builder.call(function, [args[1]]), shorts)
        else:
            short = builder.trunc(_bfloat16_bits(builder, args[1]), shorts)
        builder.store(short, pointer(builder, args[0]), align=2)

    return types.void(types.int64, VECTOR), build


@intrinsic
def store_pairs(_context: Any, address: Any, low: Any, high: Any) -> Any:
    """The nearest bfloat16 numbers of `low` and `high` by turns."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        low, high = (_bfloat16_bits(builder, each) for each in args[1:])
        pairs = builder.or_(low, builder.shl(high, _all_lanes(16)))
        builder.store(pairs, pointer(builder, args[0]), align=4)

    return types.void(types.int64, VECTOR, VECTOR), build


@intrinsic
def store_second(_context: Any, address: Any, vector: Any) -> Any:
    """The nearest bfloat16 numbers as the second of each pair; the first stays what it is."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        place = pointer(builder, args[0])
        first = builder.and_(builder.load(place, align=4, typ=I32S), _all_lanes(0xFFFF))
        second = builder.shl(_bfloat16_bits(builder, args[1]), _all_lanes(16))
        builder.store(builder.or_(first, second), place, align=4)

    return types.void(types.int64, VECTOR), build


@intrinsic
def higher(_context: Any, peak: Any, vector: Any) -> Any:
    """Lane by lane, the larger magnitude; NaN is larger than infinity. peak: of no negative numbers."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        before, now = (builder.bitcast(each, I32S) for each in args)
        now = builder.and_(now, ir.Constant(I32S, [0x7FFFFFFF] * LANES))
        return builder.bitcast(builder.select(builder.icmp_unsigned(">", now, before), now, before), F32S)

    return VECTOR(VECTOR, VECTOR), build


@intrinsic
def highest(_context: Any, peak: Any) -> Any:
    """The largest of no negative numbers; NaN is larger than infinity."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [I32S])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.umax.v{LANES}i32")
        return builder.bitcast(builder.call(function, (builder.bitcast(args[0], I32S),)), F32)

    return types.float32(VECTOR), build


@intrinsic
def larger(_context: Any, a: Any, b: Any) -> Any:
    """Lane by lane, the larger; b where either is NaN."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return VECTOR(VECTOR, VECTOR), build


@intrinsic
def any_above(_context: Any, vector: Any, other: Any) -> Any:
    """Whether any lane is larger than the same lane of `other`; NaN is neither."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered(">", *args), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(VECTOR, VECTOR), build


@intrinsic
def lane(_context: Any, vector: Any, index: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], I32))

    return types.float32(VECTOR, types.int64), build


@intrinsic
def keep_between(_context: Any, vector: Any, first: Any, end: Any, other: Any) -> Any:
    """The vector's lanes first <= i < end, elsewhere those of `other`."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vector, first, end, other = args
        wide = ir.VectorType(I64, LANES)
        steps = ir.Constant(wide, list(range(LANES)))

        def spread(number: Any) -> Any:
            one = builder.insert_element(ir.Constant(wide, ir.Undefined), number, ir.Constant(I32, 0))
            return builder.shuffle_vector(one, ir.Constant(wide, ir.Undefined), ir.Constant(I32S, [0] * LANES))

        inside = builder.and_(
            builder.icmp_signed(">=", steps, spread(first)), builder.icmp_signed("<", steps, spread(end))
        )
        return builder.select(inside, vector, other)

    return VECTOR(VECTOR, types.int64, types.int64, VECTOR), build


@intrinsic
def _floor(_context: Any, vector: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(F32S, [F32S])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.floor.v{LANES}f32"), args)

    return VECTOR(VECTOR), build


@intrinsic
def _power_of_two(_context: Any, exponent: Any) -> Any:
    """2 ** exponent for whole numbers -127 <= exponent <= 128: the ends give 0 and infinity."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        biased = builder.add(builder.fptosi(args[0], I32S), ir.Constant(I32S, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(I32S, [23] * LANES)), F32S)

    return VECTOR(VECTOR), build


@intrinsic
def word(_context: Any, address: Any, index: Any) -> Any:
    """The int64 number `index` of an array of them."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(pointer(builder, args[0]), [args[1]], source_etype=I64), typ=I64)

    return types.int64(types.int64, types.int64), build


@intrinsic
def store_word(_context: Any, address: Any, index: Any, number: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(pointer(builder, args[0]), [args[1]], source_etype=I64))

    return types.void(types.int64, types.int64, types.int64), build


@intrinsic
def load_one(_context: Any, address: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load(pointer(builder, args[0]), typ=F32)

    return types.float32(types.int64), build


@intrinsic
def store_one(_context: Any, address: Any, number: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[1], pointer(builder, args[0]))

    return types.void(types.int64, types.float32), build


def _folded(builder: Any, vector: Any, width: int) -> tuple[Any, Any]:
    """The lanes as they are, and turned by `width`."""
    order = ir.Constant(I32S, [(i + width) % LANES for i in range(LANES)])
    return vector, builder.shuffle_vector(vector, ir.Constant(F32S, ir.Undefined), order)


@intrinsic
def total(_context: Any, vector: Any) -> Any:
    """The sum of the lanes, always in the same order: ((0 + 4) + (1 + 5)) + ((2 + 6) + (3 + 7)), if there are more than
    eight after 0 + 8, 1 + 9 and so on.
    """

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vector = args[0]
        for width in (8, 4, 1, 2) if LANES > PORTABLE_LANES else (4, 1, 2):
            vector = builder.fadd(*_folded(builder, vector, width))
        return builder.extract_element(vector, ir.Constant(I32, 0))

    return types.float32(VECTOR), build


@intrinsic
def largest(_context: Any, vector: Any) -> Any:
    """Of the lanes, none of them NaN."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vector = args[0]
        for width in (8, 4, 2, 1) if LANES > PORTABLE_LANES else (4, 2, 1):
            one, other = _folded(builder, vector, width)
            vector = builder.select(builder.fcmp_ordered(">", one, other), one, other)
        return builder.extract_element(vector, ir.Constant(I32, 0))

    return types.float32(VECTOR), build


@_inner
def exp(x):
    """e ** x within 1 ulp or so (Cephes): -inf gives 0."""
    x = larger(splat(types.float32(-88.0)), x)
    x = splat(types.float32(0)) - larger(splat(types.float32(-88.3)), splat(types.float32(0)) - x)
    n = _floor(fma(x, splat(types.float32(1.44269504)), splat(types.float32(0.5))))
    r = fma(n, splat(types.float32(-0.693359375)), x)
    r = fma(n, splat(types.float32(2.12194440e-4)), r)
    p = fma(splat(types.float32(1.9875691500e-4)), r, splat(types.float32(1.3981999507e-3)))
    p = fma(p, r, splat(types.float32(8.3334519073e-3)))
    p = fma(p, r, splat(types.float32(4.1665795894e-2)))
    p = fma(p, r, splat(types.float32(1.6666665459e-1)))
    p = fma(p, r, splat(types.float32(0.5)))
    p = fma(p, r * r, r + splat(types.float32(1)))
    return p * _power_of_two(n)


@intrinsic
def _shift_exponent(_context: Any, vector: Any, shifted: Any) -> Any:
    """vector * 2 ** n, where the numbers `shifted` are n + _WHOLE, as long as all results are normal."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits, steps = (builder.bitcast(each, I32S) for each in args)
        return builder.bitcast(builder.add(bits, builder.shl(steps, _all_lanes(23))), F32S)

    return VECTOR(VECTOR, VECTOR), build


@intrinsic
def _zero_below(_context: Any, vector: Any, x: Any, limit: Any) -> Any:
    """0 where x is below the limit, elsewhere the vector's lanes."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vector, x, limit = args
        zeros = ir.Constant(F32S, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<", x, limit), zeros, vector)

    return VECTOR(VECTOR, VECTOR, VECTOR), build


_WHOLE = 1.5 * 2**23  # float32 numbers from here on are whole ones: added and taken off again, it rounds to those


@_inner
def exp2(x):
    """2 ** x for x <= 126 within 3e-6, by the best polynomial of degree 4 that gives 2 ** 0 = 1; below -125 it is 0."""
    shifted = x + splat(types.float32(_WHOLE))
    r = x - (shifted - splat(types.float32(_WHOLE)))
    p = fma(splat(types.float32(9.582852944731712e-3)), r, splat(types.float32(5.5906426161527634e-2)))
    p = fma(p, r, splat(types.float32(2.4024099111557007e-1)))
    p = fma(p, r, splat(types.float32(6.931241750717163e-1)))
    p = fma(p, r, splat(types.float32(1)))
    return _zero_below(_shift_exponent(p, shifted), x, splat(types.float32(-125)))


def has_fma() -> bool:
    """Without it, `fma` would become a library call for each number."""
    if platform.machine() in ("aarch64", "arm64"):
        return True
    return "fma" in FEATURES
