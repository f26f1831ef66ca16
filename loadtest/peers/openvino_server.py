"""OpenVINO GenAI's continuous batching, which has no server, behind as much of `/v1/completions` as loadtest asks.

Runs in an environment with openvino-genai and needs nothing else, not even this project:
`python loadtest/peers/openvino_server.py DIR --port 8104`, DIR written by `optimum-cli export openvino`. Speaks the
dialect polydecode. One thread, since a step of the pipeline lets no other Python thread run: between two steps all
requests that have come are admitted, and each token is sent as the step made it. What is sent is the token's own bytes:
to detokenise texts would only cost the peer time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from typing import Any

import openvino_genai

# Accepting, reading the head and reading the body each take turns of the loop.
_TURNS_BETWEEN_STEPS = 8
_HEAD = "HTTP/1.1 {}\r\nContent-Type: {}\r\nConnection: close\r\n\r\n"

Piece = Mapping[int, list[int]]
"""New token ids by beam."""


class Generation:
    """One request in the pipeline. Greedy tokens come as they are made, those of beams when all are done."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._ended = False
        self.pieces: asyncio.Queue[Piece | None] = asyncio.Queue()  # None: there are no more

    def read(self) -> bool:
        """Hands on what the last step made; False once there is no more."""
        status = self._handle.get_status().name
        while self._handle.can_read():
            made = self._handle.read().values()
            self.pieces.put_nowait({beam: list(output.generated_ids) for beam, output in enumerate(made)})
        if status == "RUNNING":
            return True
        self._ended = True
        self.pieces.put_nowait(None)
        return False

    def leave(self) -> None:
        """Frees what it holds, if its client went first."""
        if not self._ended:
            self._handle.cancel()


class Batcher:
    """Steps the pipeline as long as a request is in it."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._live: list[Generation] = []
        self._arrived = asyncio.Event()
        self._count = 0

    def add(self, prompt_ids: Any, body: Mapping[str, Any]) -> Generation:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = body["max_tokens"]
        config.ignore_eos = body.get("ignore_eos", False)
        config.num_beams = config.num_return_sequences = body.get("num_beams", 1)
        self._count += 1
        generation = Generation(self._pipeline.add_request(self._count, prompt_ids, config))
        self._live.append(generation)
        self._arrived.set()
        return generation

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            for _ in range(_TURNS_BETWEEN_STEPS):
                await asyncio.sleep(0)
            self._pipeline.step()
            self._live = [generation for generation in self._live if generation.read()]
            if not self._live:
                self._arrived.clear()


class Server:
    """Answers any GET with 200: it listens once the model is loaded."""

    def __init__(self, batcher: Batcher, tokenizer: Any) -> None:
        self._batcher = batcher
        self._tokenizer = tokenizer
        self._words = {number: word for word, number in tokenizer.get_vocab().items()}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if head.startswith("GET "):
                writer.write((_HEAD.format("200 OK", "application/json") + '{"data": []}').encode())
            else:
                await self._complete(json.loads(await reader.readexactly(_length(head))), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client has gone
        finally:
            writer.close()

    async def _complete(self, body: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        beams = body.get("num_beams", 1)
        if body.get("n", 1) != beams or not body.get("stream"):
            writer.write((_HEAD.format("400 Bad Request", "text/plain") + "only streams, of all beams").encode())
            return
        prompt_ids = self._tokenizer.encode(body["prompt"]).input_ids
        generation = self._batcher.add(prompt_ids, body)
        writer.write(_HEAD.format("200 OK", "text/event-stream").encode())
        made = 0
        try:
            while (piece := await generation.pieces.get()) is not None:
                made += sum(len(ids) for ids in piece.values())
                writer.write(_event([_choice(beam, self._text(ids)) for beam, ids in piece.items()]))
                await writer.drain()
        finally:
            generation.leave()
        writer.write(_event([_choice(beam, "", "length") for beam in range(beams)]))
        usage = {"prompt_tokens": prompt_ids.shape[-1], "completion_tokens": made}
        writer.write(_event([], usage) + b"data: [DONE]\n\n")

    def _text(self, ids: list[int]) -> str:
        return b"".join(self._words[number] for number in ids).decode(errors="replace")


def _length(head: str) -> int:
    lines = (line.partition(":") for line in head.lower().splitlines())
    return next(int(value) for name, _, value in lines if name == "content-length")


def _choice(index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish_reason}


def _event(choices: list[dict[str, Any]], usage: Mapping[str, int] | None = None) -> bytes:
    return f"data: {json.dumps({'choices': choices, 'usage': usage})}\n\n".encode()


def _pipeline(options: argparse.Namespace) -> Any:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = options.cache_size
    scheduler.max_num_seqs = options.max_num_seqs
    scheduler.max_num_batched_tokens = options.max_num_batched_tokens
    scheduler.enable_prefix_caching = True
    return openvino_genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", options.properties)


async def _main(options: argparse.Namespace) -> None:
    pipeline = _pipeline(options)
    batcher = Batcher(pipeline)
    server = Server(batcher, pipeline.get_tokenizer())
    async with await asyncio.start_server(server.serve, "127.0.0.1", options.port, backlog=1024):
        await batcher.run()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="OpenVINO GenAI, to be measured by loadtest.")
    parser.add_argument("model", help="directory written by optimum-cli export openvino")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cache-size", type=int, default=2, help="of the KV cache, GB (default 2)")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="rows of a batch (default 64)")
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048, help="of a step (default 2048)")
    parser.add_argument("--properties", type=json.loads, default={}, metavar="JSON", help="of the device")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(_main(_options()))
