"""Whether a grammar compiles, found out by a process of its own that starts with the first question.

A grammar that ends the process is too complex; the next question starts another one. Answers are remembered.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from typing import Any

from decoding.contract.params import Grammar
from server.errors import ApiError
from server.settings.sections import LimitSettings

SECONDS: float = LimitSettings.model_fields["grammar_seconds"].default
REMEMBERED = 256
MAX_WAITING = 16  # questions behind the one that is being answered, each of which may take a second


class GrammarCheck:
    """special_tokens: (id, name), which grammars may name. seconds: processor time that one grammar may take."""

    def __init__(self, special_tokens: Sequence[tuple[int, str]] = (), seconds: float = SECONDS) -> None:
        self._special_tokens = tuple(special_tokens)
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._num_waiting = 0
        self._known: OrderedDict[Grammar, str | None] = OrderedDict()

    async def problem(self, grammar: Grammar) -> str | None:
        """What is wrong with it, to follow the field's name; None where it compiles."""
        if grammar in self._known:
            self._known.move_to_end(grammar)
            return self._known[grammar]
        if self._num_waiting >= MAX_WAITING:
            raise ApiError(429, "too many grammars wait to be checked", code="grammar_queue_full", retry_after=2)
        self._num_waiting += 1
        try:
            return await self._found(grammar)
        finally:
            self._num_waiting -= 1

    async def _found(self, grammar: Grammar) -> str | None:
        """Cancelled while it waits for its turn, it is never asked; later, its answer is remembered all the same."""
        async with self._lock:
            if grammar not in self._known:
                answer = await _to_the_end(asyncio.to_thread(self._ask, grammar))
                self._known[grammar] = answer
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return self._known[grammar]

    def close(self) -> None:
        """Ends the process. Waits for no answer."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _ask(self, grammar: Grammar) -> str | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"kind": grammar.kind, "text": grammar.text}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            return "is too complex"
        found: str | None = json.loads(answer)
        return found

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "server.text.grammar_process", str(self._seconds)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(self._special_tokens) + "\n")
        return self._process


async def _to_the_end(work: Coroutine[Any, Any, str | None]) -> str | None:
    """The work's result, and if this is cancelled not before it is done: one process answers one question at a time."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
