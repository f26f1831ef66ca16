"""`polydecode chat`: talk to the model in this terminal. Ctrl-C ends an answer, Ctrl-D the talk; /new begins another.

Answers are decoded by any strategy (`--num-beams 4`, `--temperature 0`, …). Without a terminal each line of the input
is a turn.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from polydecode.commands.complete import main_failure
from polydecode.commands.flags import parse
from polydecode.errors import DecodingFailed, InvalidRequest, TimedOut
from polydecode.llm import LLM
from server.wire.requests import ChatRequest
from server.worker.model_files import ModelError

NEW = "/new"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("polydecode chat", description=__doc__, allow_abbrev=False)
    parser.add_argument("--system", metavar="TEXT", help="a system message before all others")
    values, fields, settings = parse(parser, ChatRequest, arguments)
    try:
        with LLM(**settings) as llm:
            _talk(llm, [{"role": "system", "content": values.system}] if values.system else [], fields)
    except KeyboardInterrupt:
        return 130
    except (ValueError, ModelError, OSError, DecodingFailed, TimedOut) as error:
        return main_failure(error)
    return 0


def _talk(llm: LLM, beginning: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    messages = list(beginning)
    for said in _turns():
        if said == NEW:
            messages = list(beginning)
            continue
        try:
            answer = _answer(llm, [*messages, {"role": "user", "content": said}], fields)
        except InvalidRequest as refused:
            if not messages:
                raise
            print(f"polydecode: {refused}; {NEW} begins another talk", file=sys.stderr)
            continue
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]


def _turns() -> Iterator[str]:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 - gives `input` its arrow keys
    while True:
        try:
            said = input("> " if is_terminal else "")
        except EOFError:
            return
        if said.strip():
            yield said


def _answer(llm: LLM, messages: list[dict[str, Any]], fields: dict[str, Any]) -> str:
    """What was said, as far as it was let."""
    said: list[str] = []
    try:
        for delta in llm.chat(messages, fields, stream=True):
            if delta.choice == 0:
                print(delta.text, end="", flush=True)
                said.append(delta.text)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    print()
    return "".join(said)
