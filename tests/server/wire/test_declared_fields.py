"""A wire field that takes its declaration from a params class has that field's type as well."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from decoding.contract.params import PARAMS, Adapt, Edt, LogitsParams
from decoding.contract.params.declared import declared
from server.wire.requests import Decoding

PLAIN = (bool, int, float, str)


def wire_type(path: str) -> Any:
    wire: Any = Decoding
    *parents, name = path.split(".")
    for parent in parents:
        wire = next(part for part in get_args(wire.model_fields[parent].annotation) if part is not type(None))
    return wire.model_fields[name].annotation


@pytest.mark.parametrize("params", [LogitsParams, Edt, Adapt, *PARAMS.values()])
def test_the_types_agree(params: type) -> None:
    hints = get_type_hints(params)
    for each in declared(params).values():
        if each.path == "best_of_rank":  # any text in params: which judges there are is known on the wire alone
            continue
        if each.text and hints[each.name] in PLAIN:
            assert wire_type(each.path) in (hints[each.name], hints[each.name] | None), each.path
