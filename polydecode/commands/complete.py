"""`polydecode complete PROMPT`: continue a text in this process, by any strategy, and print it as it comes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from polydecode.commands.flags import fail, parse
from polydecode.endpoints import COMPLETIONS
from polydecode.errors import DecodingFailed, TimedOut, as_python
from polydecode.llm import LLM
from server.errors import ApiError
from server.wire.requests import CompletionFields
from server.worker.model_files import ModelError


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("polydecode complete", description=__doc__, allow_abbrev=False)
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from standard input")
    parser.add_argument("--json", action="store_true", dest="is_json", help="print the object of /v1/completions")
    values, fields, settings = parse(parser, CompletionFields, arguments)
    prompt = sys.stdin.read() if values.prompt == "-" else values.prompt
    try:
        with LLM(**settings) as llm:
            (_print_object if values.is_json else _print_text)(llm, prompt, fields)
    except KeyboardInterrupt:
        return 130
    except ApiError as error:
        return main_failure(as_python(error))
    except (ValueError, ModelError, OSError, DecodingFailed, TimedOut) as error:
        return main_failure(error)
    return 0


def main_failure(error: Exception) -> int:
    return fail(str(error), 2 if isinstance(error, ValueError) else 1)


def _print_text(llm: LLM, prompt: str, fields: dict[str, Any]) -> None:
    """One choice as it comes; several one below the other, with what they are ranked by."""
    if fields.get("n", 1) == 1 and fields.get("num_return_sequences", 1) == 1:
        for delta in llm.generate(prompt, fields, stream=True):
            print(delta.text, end="", flush=True)
        print()
        return
    for choice in llm.generate(prompt, fields).choices:
        score = "" if choice.score is None else f", score {choice.score:.4f}"
        print(f"--- choice {choice.index}{score}\n{choice.text}")


def _print_object(llm: LLM, prompt: str, fields: dict[str, Any]) -> None:
    body = {"prompt": prompt, **fields}
    job = llm.plan(COMPLETIONS, 0, body)
    for _ in llm.run([job]):
        continue
    if job.error is not None:
        raise job.error
    print(msgspec.json.encode(COMPLETIONS.whole(job, llm.served, body)).decode())
