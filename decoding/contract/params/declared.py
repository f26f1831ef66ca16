"""What is declared of a parameter beside its name, type and default: once, for both processes.

    top_k: Annotated[int, Within(0, MAX_INT), Off(-1), Says("The k likeliest tokens; 0 or -1 is off.")] = 0

The engine checks the bounds; the server makes the wire field, its texts and its tables from the same line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from decoding.contract.params.invalid import check

MAX_INT = 2**31 - 1
Kind = Literal["temperature", "filter", "dynamic temperature", "penalty", "length", "mask"]
Mark = TypeVar("Mark")


@dataclass(frozen=True, slots=True)
class Within:
    """Bounds of a finite number, or of each number in a tuple."""

    ge: float = -math.inf
    le: float = math.inf
    gt: float = -math.inf
    lt: float = math.inf

    def fault(self, value: float) -> str | None:
        """What is wrong with the value."""
        if not math.isfinite(value):
            return "must be finite"
        if value < self.ge:
            return f"must be at least {self.ge}"
        if value > self.le:
            return f"must be at most {self.le}"
        if value <= self.gt:
            return f"must be more than {self.gt}"
        return f"must be less than {self.lt}" if value >= self.lt else None


@dataclass(frozen=True, slots=True)
class Offered(Within):
    """What a request may ask for, where the engine takes more."""


@dataclass(frozen=True, slots=True)
class Says:
    """What clients read of the field."""

    text: str


@dataclass(frozen=True, slots=True)
class Named:
    """The wire's name, where it is another one; of a field of an object with the object's: `kl_guided.prompt`."""

    path: str


@dataclass(frozen=True, slots=True)
class Off:
    """Another value that asks for nothing."""

    value: Any


@dataclass(frozen=True, slots=True)
class IsStep:
    """The field asks for a step of the logits pipeline. needs: a field without which it has no meaning."""

    kind: Kind
    purpose: str
    paper: str = ""
    needs: str = ""


@dataclass(frozen=True, slots=True)
class PartOf:
    """The field says how the step of another field works. has_neutral: by default it says nothing."""

    step: str
    has_neutral: bool = True


@dataclass(frozen=True, slots=True)
class FromModel:
    """Only the server knows the value: it depends on the model. placeholder: stands for it where rows are counted."""

    placeholder: Any


@dataclass(frozen=True, slots=True)
class FromText(FromModel):
    """The token ids of the text that the request gives. begins: it opens a context, else it goes on behind a text."""

    placeholder: tuple[int, ...] = ()
    begins: bool = False


@dataclass(frozen=True, slots=True)
class IsToken:
    """The number is a token id, or each number in a tuple."""


@dataclass(frozen=True, slots=True)
class IsModel:
    """The text names a model of the server's in which every choice has a row, or each text in a tuple."""


TokenId = Annotated[int, Within(0, MAX_INT), IsToken()]
ModelName = Annotated[str, IsModel()]
PROBABILITY = Within(0, 1)


@dataclass(frozen=True, slots=True)
class Declared:
    """One parameter of a class.

    path: its name on the wire, of a field of an object with the object's: `edt.theta`.
    default: MISSING where it must be given.
    bounds: what the number, or each number in the tuple, is held to.
    marks: what is declared of the parameter itself; inner: of the entries of a tuple.
    """

    name: str
    path: str
    default: Any
    bounds: Within | None
    marks: tuple[Any, ...]
    inner: tuple[Any, ...]

    def mark(self, kind: type[Mark]) -> Mark | None:
        return next((mark for mark in self.marks if type(mark) is kind), None)

    @property
    def from_model(self) -> FromModel | None:
        return next((mark for mark in self.marks if isinstance(mark, FromModel)), None)

    @property
    def text(self) -> str:
        says = self.mark(Says)
        return says.text if says else ""

    @property
    def off(self) -> tuple[Any, ...]:
        """What asks for nothing beside the default."""
        off = self.mark(Off)
        return (off.value,) if off else ()


def declared(params: type) -> Mapping[str, Declared]:
    """The parameters of a dataclass by name."""
    return _all_of(params)


@cache
def _all_of(params: type) -> dict[str, Declared]:
    hints = get_type_hints(params, include_extras=True)
    return {each.name: _declared(params, each, hints[each.name]) for each in fields(params)}


def check_declared(params: Any) -> None:
    """Raises InvalidParam unless every number lies within its bounds."""
    for each in _bounded(params.__class__):
        value = getattr(params, each.name)
        if value is not each.default:
            for number in _numbers(value):
                fault = each.bounds.fault(number) if each.bounds else None
                check(fault is None, each.path, fault or "")


def token_ids(params: Any) -> tuple[int, ...]:
    """Every token id that the parameters name."""
    named = (each.name for each in declared(params.__class__).values() if IsToken() in (*each.marks, *each.inner))
    return tuple(int(number) for name in named for number in _numbers(getattr(params, name)))


def models_named(params: Any) -> tuple[tuple[str, str], ...]:
    """(wire path, model) for every model that the parameters name."""
    return tuple((each.path, name) for each in _naming(params.__class__) for name in _texts(getattr(params, each.name)))


@cache
def _naming(params: type) -> tuple[Declared, ...]:
    return tuple(each for each in declared(params).values() if IsModel() in (*each.marks, *each.inner))


@cache
def _bounded(params: type) -> tuple[Declared, ...]:
    return tuple(each for each in declared(params).values() if each.bounds is not None)


def _declared(params: type, field: Field[Any], hint: Any) -> Declared:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    every = tuple(_marks(hint))
    within = getattr(params, "WITHIN", "")
    named = next((mark.path for mark in marks if type(mark) is Named), f"{within}.{field.name}".removeprefix("."))
    bounds = next((mark for mark in every if type(mark) is Within), None)
    return Declared(field.name, named, field.default, bounds, marks, every[len(marks) :])


def _marks(hint: Any) -> Iterator[Any]:
    """Of a type and of all types in it, the outermost first."""
    if get_origin(hint) is Annotated:
        yield from hint.__metadata__
    for part in get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint):
        yield from _marks(part)


def _texts(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for each in value:
            yield from _numbers(each)
    elif value is not None:
        yield value
