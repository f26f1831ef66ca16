"""The wire types with the fields of plugins: made from their params, as ours are, when the server starts."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import create_model

from decoding.contract.params import BestOf
from decoding.contract.params.declared import Declared, FromText, declared
from decoding.contract.params.sampling import RANKINGS
from decoding.contract.plugins import PluginError, Plugins
from server.wire.base import Items, Wire, field_of, option
from server.wire.requests import CONTEXT, ChatRequest, CompletionRequest
from server.wire.responses import ResponseRequest
from server.wire.strategies import Context

Fields = dict[str, Any]
VERSIONS = "Plugins that the request must run with, by name and version; `decoding.effective` has them."


@dataclass(frozen=True, slots=True)
class WireTypes:
    """What a request's body is parsed as."""

    completion: type[CompletionRequest] = CompletionRequest
    chat: type[ChatRequest] = ChatRequest
    response: type[ResponseRequest] = ResponseRequest


PLAIN = WireTypes()


def wire_types(plugins: Plugins) -> WireTypes:
    """Raises PluginError where a field cannot be, or is another's already."""
    if not plugins.plugins:
        return PLAIN
    fields = _fields(plugins)
    fields["plugins"] = (dict[str, str] | None, option(VERSIONS))
    if plugins.judges:
        ranking = Literal[(*RANKINGS, *plugins.judges)]  # type: ignore[valid-type]
        fields["best_of_rank"] = (ranking | None, field_of(BestOf, "rank_by"))

    forms = {"plugins": "a map from names of plugins to versions", **dict.fromkeys(_contexts(plugins), CONTEXT)}

    def extended(wire: type[Any]) -> Any:
        made: Any = create_model(wire.__name__, __base__=wire, __doc__=wire.__doc__, **fields)
        made.PLUGINS, made.FORMS = plugins, {**wire.FORMS, **forms}
        return made

    return WireTypes(extended(CompletionRequest), extended(ChatRequest), extended(ResponseRequest))


def _fields(plugins: Plugins) -> Fields:
    """Of all strategies and steps, each as pydantic takes a field's definition. Raises PluginError."""
    wires = (CompletionRequest, ChatRequest, ResponseRequest)
    taken = {"plugins", *(name for wire in wires for name in wire.model_fields)}
    fields: Fields = {}
    for plugin in plugins.plugins:
        owners = [(strategy.params, strategy.purpose) for strategy in plugin.strategies]
        for owner, purpose in [*owners, *((step, step.PURPOSE) for step in plugin.steps)]:
            for name, field in _own_fields(plugin.name, owner, purpose):
                if name in taken or name in fields:
                    raise PluginError(f"plugin {plugin.name}: {name} is a field of somebody else's")
                fields[name] = field
    return fields


def _contexts(plugins: Plugins) -> Iterator[str]:
    """The fields that take a text or token ids."""
    for strategy in plugins.strategies:
        for each in declared(strategy.params).values():
            if (text := each.mark(FromText)) is not None and text.begins:
                yield each.path


def _own_fields(plugin: str, owner: Any, purpose: str) -> Iterator[tuple[str, Any]]:
    """A field of its own each, or an object that holds them."""
    own = {each.path: each for each in declared(owner).values() if each.path != "n"}
    fields = {path.removeprefix(f"{owner.WITHIN}."): _field(plugin, owner, each) for path, each in own.items()}
    if not owner.WITHIN:
        yield from fields.items()
        return
    made = create_model(owner.__name__, __base__=Wire, __doc__=owner.__doc__, **fields)
    yield owner.WITHIN, (made | None, option(purpose))


def _field(plugin: str, owner: type, each: Declared) -> Any:
    hint = get_type_hints(owner, include_extras=True)[each.name]
    text = each.mark(FromText)
    try:
        kind = (Context if text.begins else str) if text else _wire_type(hint)
    except TypeError as error:
        raise PluginError(f"plugin {plugin}: field {each.name} of {owner.__name__} {error}") from None
    field = field_of(owner, each.name)
    return (kind if field.is_required() else kind | None, field)


def _wire_type(hint: Any) -> Any:
    """As which JSON is read that becomes such a value. Raises TypeError."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (int, float, bool, str) or origin is Literal:
        return hint
    if origin is Annotated:
        return _wire_type(inner[0])
    if origin in (Union, types.UnionType) and len(inner) == 2 and types.NoneType in inner:
        return _wire_type(next(each for each in inner if each is not types.NoneType))  # null may always be said
    if origin is tuple and len(inner) == 2 and inner[1] is ...:
        entry = _wire_type(inner[0])
        return Items[entry]  # type: ignore[valid-type]
    raise TypeError("must be a number, a text, true or false, one of some values, or a tuple of these")
