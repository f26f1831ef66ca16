"""That no log line can be forged, and that exceptions give away no content."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from server.observe import logs
from server.worker.progress import LineDisplay


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console", "info")
    logging.getLogger("x").info("one\ntwo\x1b[31m %s", "three\r\x85\u2028")
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert not [c for c in text[:-1] if not c.isprintable()]
    assert r"one\ntwo\x1b[31m three\r\x85\u2028" in text


def test_an_exception_is_named_with_its_place_but_not_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "debug")
    try:
        raise ValueError("the secret prompt")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["exception"]) == ("it failed", "ValueError")
    assert line["raised_at"][0].startswith("server/observe/test_logs.py:")
    assert "secret" not in str(line)


def test_libraries_that_log_content_are_kept_above_debug(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "debug")
    logging.getLogger("sse_starlette.sse").debug("chunk: secret")
    assert capsys.readouterr().err == ""


def test_progress_without_a_terminal_is_a_line_per_stage() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream)
    for fraction in (0.0, 0.3, 0.7, 1.0):
        display.show("loading weights", fraction)
    display.show("self-test", 0.0)
    display.close()
    assert stream.getvalue().splitlines() == [
        "polydecode: loading weights ...",
        "polydecode: loading weights: done",
        "polydecode: self-test ...",
    ]
