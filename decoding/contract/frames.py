"""The wire between the server process and the decode worker: msgspec structs, length-prefixed, never pickle.

Torch-free, so both sides import it. A frame is a 4-byte little-endian length and a msgpack body; the tag names the
type. Server -> worker: Open once at most, Start once, then Submit, Cancel, Shutdown. Worker -> server: Progress while
loading, Loaded once, then one Tick per engine tick (and one at least every second, as a heartbeat), Fault where an
exception ended a request, Crashed as a last word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import msgspec

from decoding.contract.params import (
    LatentThoughts,
    LogitsParams,
    LogprobsParams,
    Request,
    StoppingParams,
    StrategyParams,
)
from decoding.contract.params.stopping import StopSequence
from decoding.contract.plugins import NO_PLUGINS, Plugins
from decoding.contract.quantize import Quantize

MAX_FRAME_BYTES = 64 << 20
HEADER = struct.Struct("<I")


class Open(msgspec.Struct, frozen=True, tag=True):
    """Which model Start will name, as soon as that is known: the worker opens it while the server reads its tokenizer.
    The fields are Start's."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    batch_invariant: bool = False
    quantize: Quantize = "none"


class Start(msgspec.Struct, frozen=True, tag=True):
    """How to build the worker. Paths are local directories; sizes are resolved by the worker when 0.

    token_bytes: the UTF-8 bytes each token id stands for, for stop sequences (empty: no stop sequence can match).
    special_tokens: ids and names, for grammars and shown text. eos_token_ids: the tokenizer's, beside the model's own.
    What lies beyond the logits of the model is left out of all three. beside: further models by name, directories too,
    with the same vocabulary.
    batch_invariant: on a GPU too, a row's bits must not depend on the batch. quantize: of all models. launch_ahead: of
    the next tick's forward, before this one is read. plugins: files and modules, as the operator named them.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    max_rows: int = 256
    max_model_len: int = 0
    kv_memory_bytes: int = 0
    tick_tokens: int = 0
    prefix_cache: bool = True
    threads: int = 0
    token_bytes: tuple[bytes, ...] = ()
    beside: dict[str, str] = {}
    batch_invariant: bool = False
    special_tokens: tuple[tuple[int, str], ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    quantize: Quantize = "none"
    launch_ahead: Literal["auto", "on", "off"] = "auto"
    plugins: tuple[str, ...] = ()


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A request under the server's id. `strategy` names the params class that `strategy_params` fills; plugin_steps: by
    the names of plugins' steps, what fills theirs."""

    request_id: int
    prompt_ids: tuple[int, ...]
    strategy: str
    strategy_params: dict[str, Any]
    logits: LogitsParams
    stopping: StoppingParams
    logprobs: LogprobsParams
    seed: int
    cache_salt: str = ""
    client: str = ""
    priority: int = 0
    pause_ids: tuple[int, ...] = ()
    trace: bool = False
    latent: LatentThoughts | None = None
    source_ids: tuple[int, ...] = ()
    plugin_steps: dict[str, dict[str, Any]] = {}


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget the request; no Output follows. Cancelling an unknown or finished id is no error."""

    request_id: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Exit at once with status 0."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Loading goes on: what is being done, and how far (0 to 1)."""

    stage: str
    fraction: float


class EncoderInfo(msgspec.Struct, frozen=True):
    """What a model that has an encoder asks of every request.

    max_source_len: the longest source. forced_*: what its configuration forces unless the request says otherwise.
    bad_words: what it never says.
    """

    max_source_len: int
    decoder_start_token_id: int
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()


class Beside(msgspec.Struct, frozen=True):
    """A further model. num_pages x page_size of its tokens fit its KV cache."""

    name: str
    architecture: str
    num_pages: int
    page_size: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The model is ready, its self-test passed and one canary token was decoded.

    vocab_size is the width of the logits: a valid token id is below it. num_pages x page_size tokens fit the KV cache.
    ties_embeddings: whether the output matrix is the embedding. beside: the further models, in Start's order.
    encoder: None for a model without one. has_head: False for one whose hidden states alone mean anything.
    dtype_reason: why the model's numbers are of that dtype.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    num_pages: int
    page_size: int
    max_rows: int
    device: str
    dtype: str
    architecture: str
    num_layers: int = 0
    ties_embeddings: bool = False
    beside: tuple[Beside, ...] = ()
    encoder: EncoderInfo | None = None
    has_head: bool = True
    dtype_reason: str = ""


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one choice; with finish_reason set it is the choice's last.

    logprobs[i] belongs to token_ids[i]; top[i] lists (token id, log-prob), best first. finish_reason: stop |
    length. stop_reason: the stop token's id, or the stop sequence; None for EOS and length.
    score: what the strategy ranks by (mostly the cumulative raw log-prob), on the last chunk only, when it was
    computed; figures: what else it says of the choice, there too.
    """

    choice: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    top: tuple[tuple[tuple[int, float], ...], ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | StopSequence | None = None
    score: float | None = None
    figures: dict[str, int | float | str] | None = None


class TraceEvent(msgspec.Struct, frozen=True, array_like=True):
    """One thing that a strategy saw or did; `values` is JSON."""

    step: int
    kind: str
    values: dict[str, Any]


class PromptScores(msgspec.Struct, frozen=True, array_like=True):
    """Raw log-probs of the prompt.

    One entry per prompt token, the first None. top as in Chunk (empty for the first).
    """

    logprobs: tuple[float | None, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """The request is over. Seconds are measured in the worker; tokens are the work done for it.

    computed_tokens: positions run through a model, returned or not. cached_tokens: prompt tokens taken from the prefix
    index. drafted, accepted: tokens that speculation proposed and kept. error: None, or a code (`never_fits`,
    `no_model`, `nothing_to_draw`, `nan_logits`, `out_of_memory`, `internal`) with a message safe to show.
    """

    cached_tokens: int
    computed_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    preemptions: int
    error_code: str | None = None
    error_message: str | None = None
    drafted: int = 0
    accepted: int = 0


class Output(msgspec.Struct, frozen=True, array_like=True):
    """Everything one tick says about one request. `finished` comes exactly once, with or after the last chunk.

    vector: the answer of an embedding, little-endian float32.
    """

    request_id: int
    chunks: tuple[Chunk, ...] = ()
    prompt: PromptScores | None = None
    finished: Finished | None = None
    trace: tuple[TraceEvent, ...] = ()
    vector: bytes = b""


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """Gauges after the tick and the tick's own figures; the *_total fields only grow while this worker lives."""

    running: int
    waiting: int
    live_rows: dict[str, int]
    used_pages: dict[str, int]
    tick_seconds: float
    tick_rows: int
    tick_tokens: int
    preemptions_total: int
    prefix_queries_total: int
    prefix_hits_total: int
    computed_tokens_total: int
    drafted_total: int = 0
    accepted_total: int = 0


class Tick(msgspec.Struct, frozen=True, tag=True):
    """One message per engine tick. Idle heartbeats carry no outputs and tick_rows = 0."""

    outputs: tuple[Output, ...]
    stats: Stats


class Crashed(msgspec.Struct, frozen=True, tag=True):
    """The worker's last word: it exits with this. `during`: load | tick. trace: for a log of debugging only."""

    during: str
    message: str
    trace: tuple[str, ...] = ()


class Fault(msgspec.Struct, frozen=True, tag=True):
    """An exception that ended one request and no other. trace: as in Crashed."""

    message: str
    trace: tuple[str, ...] = ()


ToWorker = Open | Start | Submit | Cancel | Shutdown
FromWorker = Progress | Loaded | Tick | Crashed | Fault

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(frame: ToWorker | FromWorker) -> bytes:
    """The frame with its length header, ready to be written."""
    body = _encoder.encode(frame)
    return HEADER.pack(len(body)) + body


def decode_to_worker(body: bytes | memoryview) -> ToWorker:
    return _to_worker.decode(body)


def decode_from_worker(body: bytes | memoryview) -> FromWorker:
    return _from_worker.decode(body)


class FrameSplitter:
    """Cuts a byte stream into frame bodies, whatever the reads' borders. Raises ValueError on an oversized length."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> Iterator[bytes]:
        """The bodies completed by `data`, in order."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"frame of {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield body


def submit_frame(request_id: int, request: Request) -> Submit:
    return Submit(
        request_id=request_id,
        prompt_ids=request.prompt_ids,
        strategy=request.strategy.NAME,
        strategy_params=msgspec.to_builtins(request.strategy),
        logits=replace(request.logits, plugin_steps=()) if request.logits.plugin_steps else request.logits,
        stopping=request.stopping,
        logprobs=request.logprobs,
        seed=request.seed,
        cache_salt=request.cache_salt,
        client=request.client,
        priority=request.priority,
        pause_ids=request.pause_ids,
        trace=request.trace,
        latent=request.latent,
        source_ids=request.source_ids,
        plugin_steps={step.NAME: msgspec.to_builtins(step) for step in request.logits.plugin_steps},
    )


def request_of(frame: Submit, plugins: Plugins = NO_PLUGINS) -> Request:
    """The inverse of submit_frame. Raises msgspec.ValidationError, KeyError or InvalidParam on a bad frame."""
    params: StrategyParams = msgspec.convert(frame.strategy_params, plugins.params[frame.strategy])
    steps = tuple(msgspec.convert(given, plugins.steps[name]) for name, given in frame.plugin_steps.items())
    return Request(
        prompt_ids=frame.prompt_ids,
        strategy=params,
        logits=replace(frame.logits, plugin_steps=steps) if steps else frame.logits,
        stopping=frame.stopping,
        logprobs=frame.logprobs,
        seed=frame.seed,
        cache_salt=frame.cache_salt,
        client=frame.client,
        priority=frame.priority,
        pause_ids=frame.pause_ids,
        trace=frame.trace,
        latent=frame.latent,
        source_ids=frame.source_ids,
    )
