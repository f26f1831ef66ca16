"""Prints a digest of what models of every format give, for test_instructions.py to compare between processors."""

from __future__ import annotations

import hashlib

import torch

from decoding.contract.quantize import Quantize
from decoding.model.loading import wrap
from tests.decoding.model.test_model import hidden_states, prompts
from tests.decoding.tiny import WHOLE_GROUPS, tiny

FORMS: dict[str, tuple[torch.dtype, Quantize]] = {
    "float32": (torch.float32, "none"),
    "bfloat16": (torch.bfloat16, "none"),
    "int8": (torch.float32, "int8"),
    "int4": (torch.float32, "int4"),
}


def digest(form: str) -> str:
    dtype, quantize = FORMS[form]
    model = wrap(tiny("llama", **WHOLE_GROUPS).to(dtype), quantize=quantize)
    assert model.is_compiled
    found = hashlib.sha256()
    for length in (1, 9, 140):
        (tokens,) = prompts(length)
        hidden = hidden_states(model, tokens, 50)
        found.update(hidden.numpy().tobytes())
        found.update(model.head(hidden).numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(*(f"{form} {digest(form)}" for form in FORMS), sep="\n")
