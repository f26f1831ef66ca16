"""What an operator reads of an exception: words and no folder; of one amid requests no library's message at all."""

from __future__ import annotations

import pytest

from decoding.model.compatibility import UnsupportedModel
from decoding.worker.error_report import MAX_CHARS, kind_and_place, load_cause, trace_of

SECRET = "what a client sent"


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            UnsupportedModel("XForCausalLM", "has no output embeddings"),
            "XForCausalLM cannot be served: it has no output",
        ),
        (ValueError("kv_memory is too small for a single page"), "kv_memory is too small for a single page"),
        (OSError("Can't load '/home/me/models/tiny'.\nMake sure that"), "Can't load 'tiny'."),
        (
            OSError("no /a/b-c/d.safetensors, see https://example.org/x/y"),
            "no d.safetensors, see https://example.org/x/y",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "/home/me/model.safetensors"),
            "model.safetensors: No such file",
        ),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (KeyError("rope"), "KeyError: 'rope'"),
        (RuntimeError(), "RuntimeError"),
        (MemoryError(), "there is not enough memory for it"),
        (RuntimeError("\x1b[31mred\x07"), "[31mred"),
    ],
)
def test_why_a_model_cannot_be_loaded_is_said_in_one_line_of_words(error: Exception, cause: str) -> None:
    said = load_cause(raised(error))
    assert said.startswith(cause)
    assert said.isprintable()
    assert "/me/" not in said


def test_a_long_message_is_cut() -> None:
    assert len(load_cause(ValueError("x" * 10_000))) == MAX_CHARS


def test_amid_requests_only_kind_and_place_are_told() -> None:
    said = kind_and_place(raised(ValueError(SECRET)))
    assert said.startswith("ValueError at decoding/worker/test_error_report.py:")
    assert SECRET not in said
    assert kind_and_place(ValueError(SECRET)) == "ValueError"


def test_the_traceback_is_kept_apart_by_lines() -> None:
    lines = trace_of(raised(ValueError("why")))
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "ValueError: why"
    assert not [line for line in lines if "\n" in line]
