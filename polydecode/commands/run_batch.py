"""`polydecode run-batch IN.jsonl OUT.jsonl`: answer a file of requests in the format of OpenAI's batch API.

Each line of IN is `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}`; of OUT, in the order in
which answers come, `{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}`. Run again after
it was stopped, it keeps what OUT has and does the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from tqdm.auto import tqdm

from polydecode.commands.complete import main_failure
from polydecode.commands.flags import NoFields, parse
from polydecode.endpoints import ENDPOINTS, Endpoint
from polydecode.job import Job
from polydecode.llm import LLM
from server.errors import ApiError
from server.worker.model_files import ModelError


class BatchError(ValueError):
    """A file that cannot be worked through; says the line."""


@dataclass(frozen=True, slots=True)
class Line:
    custom_id: str
    endpoint: Endpoint
    body: dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("polydecode run-batch", description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path)
    values, _, settings = parse(parser, NoFields, arguments)
    try:
        lines = read(values.source)
        done = answered(values.target)
        rest = [line for line in lines if line.custom_id not in done]
        if rest:
            with LLM(**settings) as llm, values.target.open("ab") as out:
                _work(llm, rest, len(lines), out)
    except KeyboardInterrupt:
        return 130
    except (ValueError, ModelError, OSError) as error:
        return main_failure(error)
    return 0


def read(source: Path) -> list[Line]:
    """Raises BatchError on the first line that is none, before anything runs."""
    lines = [_line(number, text) for number, text in enumerate(source.read_bytes().splitlines(), 1) if text.strip()]
    seen: set[str] = set()
    for line in lines:
        if line.custom_id in seen:
            raise BatchError(f"{source} has the custom_id {line.custom_id!r} twice")
        seen.add(line.custom_id)
    return lines


def answered(target: Path) -> set[str]:
    """The custom_ids of whole lines; half a line, which a kill can leave at the end, is cut off. Raises BatchError."""
    if not target.exists():
        return set()
    data = target.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(target, len(whole))
    try:
        return {json.loads(line)["custom_id"] for line in whole.splitlines()}
    except (ValueError, LookupError, TypeError):
        raise BatchError(f"{target} holds something else than the answers of a batch") from None


def _line(number: int, text: bytes) -> Line:
    try:
        value = json.loads(text)
        custom_id, method, url, body = (value[name] for name in ("custom_id", "method", "url", "body"))
    except (ValueError, LookupError, TypeError):
        message = f"line {number} must be an object with custom_id, method, url and body"
        raise BatchError(message) from None
    if not (isinstance(custom_id, str) and isinstance(body, dict) and method == "POST" and url in ENDPOINTS):
        raise BatchError(f"line {number} must be POST to one of {', '.join(ENDPOINTS)}, with a text as custom_id")
    if body.get("stream"):
        raise BatchError(f"line {number}: an answer in a file is not streamed")
    return Line(custom_id, ENDPOINTS[url], body)


def _work(llm: LLM, lines: Sequence[Line], total: int, out: BinaryIO) -> None:
    """Each answer is in the file before the next one is looked at."""

    def write(line: Line, status: int, body: Any) -> None:
        out.write(answer_line(line.custom_id, status, body))
        out.flush()
        bar.update()

    with (
        tqdm(total=total, initial=total - len(lines), disable=None, unit="request") as bar,
        closing(llm.run(_jobs(llm, lines, write))) as events,
    ):
        for job, pieces in events:
            if pieces is not None:
                continue
            line = lines[job.index]
            if job.error is None:
                write(line, 200, line.endpoint.whole(job, llm.served, line.body))
            else:
                write(line, job.error.status, job.error.body)


def _jobs(llm: LLM, lines: Iterable[Line], write: Any) -> Iterator[Job]:
    """A line that is refused is answered at once, as the server would, and the next one taken."""
    for index, line in enumerate(lines):
        try:
            yield llm.plan(line.endpoint, index, line.body)
        except ApiError as error:
            write(line, error.status, error.body)


def answer_line(custom_id: str, status: int, body: Any) -> bytes:
    response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": None}
    return msgspec.json.encode(line) + b"\n"
