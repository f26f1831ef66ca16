"""The engine in the caller's own process: every strategy of the server, by the server's own fields and checks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal, Self, overload

import msgspec
from tqdm.auto import tqdm

from polydecode.background_loop import BackgroundLoop
from polydecode.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, Body, Endpoint
from polydecode.errors import as_python, refusals
from polydecode.job import Events, Job, run
from polydecode.opening import open_engine, settings_of
from polydecode.params import Params, chat_fields, fields_of, plain
from polydecode.results import Delta, Embedding, Generation, Scores
from polydecode.retold import Retold, embedding
from polydecode.runner import Runner
from server.answer.choice import Piece
from server.settings.limits import Limits
from server.translate.catalogue import catalogue
from server.worker.progress import progress_display

Prompt = str | list[int]
Prompts = list[str] | list[list[int]]
Message = Mapping[str, Any]
Conversation = list[Message] | list[dict[str, Any]] | list[dict[str, str]]
Conversations = list[list[Message]] | list[list[dict[str, Any]]] | list[list[dict[str, str]]]
ManyParams = Params | Sequence[Params] | None

AHEAD = 2
"""Times the rows of a full batch that the engine is given at once: so much that none of its places waits for us."""


class LLM:
    """A loaded model. `LLM()` is the embedded one; `LLM("path/or/hub-id", quantize="int8", dtype="float32")` another.

    The settings are those of the server's sections Model, Engine and Limits (`polydecode default-config` lists them),
    by the same names. Requests are given as the wire has them: as keywords, as SamplingParams or as a strategy's own
    params; every call joins the one continuous batch, whatever thread or stream it comes from.

    Ctrl-C ends a call between two ticks, gives its rows and pages back, and leaves the model ready for the next one.
    """

    def __init__(self, model: str = "", **settings: Any) -> None:
        """Raises SettingsError, ModelError, or what is wrong with the model's files as loading it says."""
        self._settings = settings_of({"model": model, **settings})
        display = progress_display(is_terminal=True) if sys.stderr.isatty() else None
        try:
            opened = open_engine(self._settings, display.show if display else _silent)
        finally:
            if display is not None:
                display.close()
        self.served = opened.served
        self._limits = self._settings.section(Limits)
        self._most_rows = AHEAD * opened.loaded.max_rows
        self._wires = opened.wires
        self._runner = Runner(opened.engine, opened.num_threads, opened.build)
        self._loop = BackgroundLoop()
        self._retold = Retold(self.served.tokenizer.vocabulary)

    @overload
    def generate(
        self, prompts: Prompt, params: ManyParams = None, *, stream: Literal[False] = False, **fields: Any
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompts: Prompts,
        params: ManyParams = None,
        *,
        stream: Literal[False] = False,
        progress: bool | None = None,
        **fields: Any,
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompts: Prompt | Prompts, params: ManyParams = None, *, stream: Literal[True], **fields: Any
    ) -> Iterator[Delta]: ...
    def generate(
        self,
        prompts: Prompt | Prompts,
        params: ManyParams = None,
        *,
        stream: bool = False,
        progress: bool | None = None,
        **fields: Any,
    ) -> Generation | list[Generation] | Iterator[Delta]:
        """Continue a prompt (a text or token ids), or each of a list of them: one gives one result, a list a list.

        params: for all prompts, or a list with one for each. fields: the wire's, which go before those of params.
        progress: whether a bar is shown; None: for many prompts on a terminal.
        stream: yields Deltas as they come. Leaving the loop early ends the work.
        Raises InvalidRequest before anything runs; TimedOut, DecodingFailed.
        """
        many = _is_many(prompts)
        bodies = [
            {"prompt": plain(each), **own} for each, own in _paired(prompts if many else [prompts], params, fields)
        ]
        return self._answered(COMPLETIONS, bodies, is_many=many, stream=stream, progress=progress)

    @overload
    def chat(
        self, messages: Conversation, params: ManyParams = None, *, stream: Literal[False] = False, **fields: Any
    ) -> Generation: ...
    @overload
    def chat(
        self,
        messages: Conversations,
        params: ManyParams = None,
        *,
        stream: Literal[False] = False,
        progress: bool | None = None,
        **fields: Any,
    ) -> list[Generation]: ...
    @overload
    def chat(
        self, messages: Conversation | Conversations, params: ManyParams = None, *, stream: Literal[True], **fields: Any
    ) -> Iterator[Delta]: ...
    def chat(
        self,
        messages: Conversation | Conversations,
        params: ManyParams = None,
        *,
        stream: bool = False,
        progress: bool | None = None,
        **fields: Any,
    ) -> Generation | list[Generation] | Iterator[Delta]:
        """Answer a conversation, or each of a list of them. All else as `generate`; `tools` and the like are fields."""
        many = bool(messages) and isinstance(messages[0], list)
        pairs = _paired(messages if many else [messages], params, fields)
        bodies = [{"messages": plain(each), **chat_fields(own)} for each, own in pairs]
        return self._answered(CHAT, bodies, is_many=many, stream=stream, progress=progress)

    def trace(self, prompt: Prompt, params: ManyParams = None, **fields: Any) -> Generation:
        """Continue a prompt, and tell what the strategy saw and did at each step: `.trace` of the result."""
        traced: Generation = self.generate(prompt, params, **{**fields, "trace": True})
        return traced

    @overload
    def score(self, texts: Prompt, *, top_logprobs: int = 0) -> Scores: ...
    @overload
    def score(self, texts: Prompts, *, top_logprobs: int = 0, progress: bool | None = None) -> list[Scores]: ...
    def score(
        self, texts: Prompt | Prompts, *, top_logprobs: int = 0, progress: bool | None = None
    ) -> Scores | list[Scores]:
        """The log-prob of each token of a text (or of token ids) behind those before it."""
        many = _is_many(texts)
        asked = {"max_tokens": 0, "echo": True, "logprobs": top_logprobs}
        jobs = self._planned(COMPLETIONS, [{"prompt": plain(each), **asked} for each in (texts if many else [texts])])
        found = [self._retold.scores(job) for job in self._run_all(jobs, progress=progress)]
        return found if many else found[0]

    @overload
    def embed(self, inputs: Prompt) -> Embedding: ...
    @overload
    def embed(self, inputs: Prompts, *, progress: bool | None = None) -> list[Embedding]: ...
    def embed(self, inputs: Prompt | Prompts, *, progress: bool | None = None) -> Embedding | list[Embedding]:
        """Each input's last hidden states, pooled as the setting `embedding_pooling` says, of length 1."""
        many = _is_many(inputs)
        jobs = self._planned(EMBEDDINGS, [{"input": plain(each)} for each in (inputs if many else [inputs])])
        found = [embedding(job) for job in self._run_all(jobs, progress=progress)]
        return found if many else found[0]

    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt, special tokens in front included."""
        with refusals():
            return list(self.served.tokenizer.encode(text))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.served.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def strategies(self) -> dict[str, Any]:
        """What GET /v1/strategies says: every strategy, its fields with their schemas, what combines with what."""
        said: dict[str, Any] = msgspec.to_builtins(catalogue(self.served, self._limits, self._wires))
        return said

    @property
    def used_pages(self) -> int:
        """KV pages of requests under way."""
        return self._runner.used_pages

    def close(self) -> None:
        """End the thread that texts are prepared in. The model's memory goes with the last reference to it."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(self, endpoint: Endpoint, index: int, body: Body) -> Job:
        """A body of that endpoint, checked and made ready to run. Raises ApiError, as the server answers with it."""
        planned, ignored = endpoint.read(body, self._limits, self._wires)
        if ignored:
            warnings.warn(f"without effect: {', '.join(ignored)}", stacklevel=4)
        made = self._loop.run(_awaited(planned(self.served)))
        return Job(index, made, self.served, is_chat=endpoint.is_chat)

    def run(self, jobs: Iterable[Job]) -> Events:
        """See `job.run`."""
        return run(self._runner, jobs, self._most_rows)

    def _answered(
        self, endpoint: Endpoint, bodies: Sequence[Body], *, is_many: bool, stream: bool, progress: bool | None
    ) -> Generation | list[Generation] | Iterator[Delta]:
        jobs = self._planned(endpoint, bodies)
        if stream:
            return self._streamed(jobs)
        asked = [body.get("prompt_logprobs") for body in bodies]
        done = self._run_all(jobs, progress=progress)
        found = [self._retold.generation(job, num_top=top) for job, top in zip(done, asked, strict=True)]
        return found if is_many else found[0]

    def _planned(self, endpoint: Endpoint, bodies: Sequence[Body]) -> list[Job]:
        with refusals():
            return [self.plan(endpoint, index, body) for index, body in enumerate(bodies)]

    def _streamed(self, jobs: list[Job]) -> Iterator[Delta]:
        with closing(self.run(jobs)) as events:
            for job, pieces in events:
                if pieces is None:
                    _raise(job)
                    continue
                yield from (self._retold.delta(job, choice, piece) for choice, piece in pieces)
                if job.answer.has_trace:
                    yield self._retold.delta(job, 0, Piece())

    def _run_all(self, jobs: list[Job], *, progress: bool | None) -> list[Job]:
        off = not progress if progress is not None else None if len(jobs) > 1 else True
        with tqdm(total=len(jobs), disable=off, unit="prompt") as bar, closing(self.run(jobs)) as events:
            for job, pieces in events:
                if pieces is None:
                    _raise(job)
                    bar.update()
        return jobs


async def _awaited(work: Any) -> Any:
    return await work


def _silent(_: str, __: float) -> None:
    return None


def _raise(job: Job) -> None:
    if job.error is not None:
        raise as_python(job.error)


def _is_many(prompts: object) -> bool:
    """A list of texts or of lists of ids, not one text or the ids of one."""
    return isinstance(prompts, list | tuple) and not (bool(prompts) and isinstance(prompts[0], int))


def _paired(prompts: Any, params: Any, keywords: Mapping[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Each prompt with its fields."""
    each = list(params) if isinstance(params, list | tuple) else [params] * len(prompts)
    if len(each) != len(prompts):
        raise ValueError(f"params: {len(each)} of them for {len(prompts)} prompts")
    return [(prompt, fields_of(own, keywords)) for prompt, own in zip(prompts, each, strict=True)]
