"""From loaded models to an engine whose models have decoded a token: sizes the KV caches by the memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from fractions import Fraction

import numpy as np
import torch

from decoding.attention.interface import Batch, PagedAttention
from decoding.contract.frames import Beside, EncoderInfo, Loaded, Start
from decoding.contract.params import MAIN, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.limits import Limits
from decoding.engine.placed import Placed
from decoding.engine.vocabulary import Vocabulary
from decoding.model.info import ModelInfo
from decoding.model.model import Model
from decoding.strategies import build
from decoding.topk.scores import compile_topk
from decoding.worker import largest_tick
from decoding.worker.memory import available_memory

# Prefill tokens a tick: every running stream waits for them, so a CPU takes fewer. Both fill the machine.
CPU_TICK_TOKENS = 256
GPU_TICK_TOKENS = 8192

CANARY = (0, 1, 2)
GPU_CANARY_TOKENS = 300
"""Enough that attention is split by keys (`attention/triton.py`), which takes kernels of its own."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the memory and the models allow."""

    max_model_len: int
    num_pages: dict[str, int]  # of each model, page 0 included
    max_source_len: int = 0  # 0 where there is no encoder


def build_engine(start: Start, model: Model, beside: Mapping[str, Model] | None = None) -> tuple[Engine, Loaded]:
    """Size the KV caches, make the engine, decode one canary token with each model. beside: further models by name.

    Raises ValueError where the memory is too small or a model does not go with the main one.
    """
    beside = beside or {}
    for name, other in beside.items():
        _check_beside(name, other, model)
    models = {MAIN: model, **beside}
    peak = max(_peak_bytes(start, each) for each in models.values())
    sizes = size_caches(start, models, peak)
    for name, each in models.items():
        each.attention.allocate(sizes.num_pages[name])
    for each in models.values():
        each.record(start.max_rows, sizes.max_model_len, peak)
    for name, each in models.items():
        own = Sizes(sizes.max_model_len, {MAIN: sizes.num_pages[name]}, sizes.max_source_len)
        for prompt in canaries(each, own):
            _run_plainly(each, prompt)
            _decode_canary(_engine(start, {MAIN: each}, own), prompt, prompt[: own.max_source_len])
        compile_topk(each.info.vocab_size, each.info.device)
    info, encoder = model.info, None
    if model.encoder is not None:
        encoder = EncoderInfo(sizes.max_source_len, *astuple(model.encoder.generation))
    loaded = Loaded(
        vocab_size=info.vocab_size,
        max_model_len=sizes.max_model_len,
        eos_token_ids=ending_ids(start, info),
        num_pages=sizes.num_pages[MAIN],
        page_size=model.attention.page_size,
        max_rows=start.max_rows,
        device=str(info.device),
        dtype=str(info.dtype).removeprefix("torch."),
        architecture=info.architecture,
        num_layers=info.num_layers if info.reads_layers else 0,
        ties_embeddings=info.ties_embeddings,
        beside=tuple(
            Beside(name, each.info.architecture, sizes.num_pages[name], each.attention.page_size)
            for name, each in beside.items()
        ),
        encoder=encoder,
        has_head=info.has_head,
        dtype_reason=info.dtype_reason,
    )
    engine = _engine(start, models, sizes)
    engine.read_vocabulary()
    return engine, loaded


def _check_beside(name: str, other: Model, model: Model) -> None:
    """It reads what the model reads, and its scores are weighed against the model's id by id."""
    width, own = other.info.vocab_size, model.info.vocab_size
    if width != own:
        raise ValueError(f"the {name} model has another vocabulary: {width} token ids, where the model has {own}")
    if (model.encoder is None) != (other.encoder is None):
        raise ValueError(f"of the model and the {name} model only one has an encoder")
    if not (model.info.has_head and other.info.has_head):
        raise ValueError(f"of the model and the {name} model one was saved without its language head")


def size_caches(start: Start, models: dict[str, Model], peak_bytes: int = 0) -> Sizes:
    """Divide the memory so that all caches hold equally many tokens: what a row beside another holds, that holds too.

    Never more than all rows at full length could use, each with a source of its own where there is an encoder.
    peak_bytes: what the largest tick takes beside them.
    """
    max_model_len = _longest(start, models)
    sources = [model.encoder.max_source_len for model in models.values() if model.encoder is not None]
    max_source_len = min([*sources, start.max_model_len or max(sources)]) if sources else 0
    backends = {name: model.attention for name, model in models.items()}
    memory = start.kv_memory_bytes or _default_kv_memory(start, models, peak_bytes)
    bytes_per_token = sum(Fraction(b.bytes_per_page(), b.page_size) for b in backends.values())
    num_tokens = int(memory / bytes_per_token)
    num_pages = {
        name: min(
            1 + start.max_rows * _pages_each(backend, max_model_len, max_source_len), num_tokens // backend.page_size
        )
        for name, backend in backends.items()
    }
    if min(num_pages.values()) < 2:
        raise ValueError("kv_memory is too small for a single page")
    held = min((num_pages[name] - 1) * backend.page_size for name, backend in backends.items())
    if not sources:
        return Sizes(min(max_model_len, held), num_pages)
    largest = max(backend.page_size for backend in backends.values())
    half = held // 2 // largest * largest
    if half == 0:
        raise ValueError("kv_memory is too small for a source and a row")
    return Sizes(min(max_model_len, held - half), num_pages, min(max_source_len, half))


def _longest(start: Start, models: dict[str, Model]) -> int:
    """Positions that a row may have, as far as the models go."""
    own_limit = min(model.info.max_model_len for model in models.values())
    return min(own_limit, start.max_model_len or own_limit)


def _pages_each(backend: PagedAttention, *lengths: int) -> int:
    return sum(-(-length // backend.page_size) for length in lengths)


def _engine(start: Start, models: dict[str, Model], sizes: Sizes) -> Engine:
    info = models[MAIN].info
    placed = {
        name: Placed(model, PageCache(sizes.num_pages[name], model.attention.page_size))
        for name, model in models.items()
    }
    vocabulary = Vocabulary(
        ending_ids(start, info),
        start.token_bytes[: info.vocab_size],
        tuple((i, name) for i, name in start.special_tokens if i < info.vocab_size),
    )
    return Engine(
        placed,
        vocabulary,
        Limits(start.max_rows, _tick_tokens(start, info.device), sizes.max_model_len),
        shares_prefixes=start.prefix_cache,
        launches_ahead=launches_ahead(start, info.device),
    )


def ending_ids(start: Start, info: ModelInfo) -> tuple[int, ...]:
    """The model's, then the tokenizer's, which ends a chat's turns in many a model that says nothing of it."""
    ids = dict.fromkeys((*info.eos_token_ids, *start.eos_token_ids))
    return tuple(token_id for token_id in ids if 0 <= token_id < info.vocab_size)


def launches_ahead(start: Start, device: torch.device) -> bool:
    """A CPU gains nothing: it computes while it launches."""
    return device.type == "cuda" if start.launch_ahead == "auto" else start.launch_ahead == "on"


def _tick_tokens(start: Start, device: torch.device) -> int:
    return start.tick_tokens or (CPU_TICK_TOKENS if device.type == "cpu" else GPU_TICK_TOKENS)


def _default_kv_memory(start: Start, models: dict[str, Model], peak_bytes: int) -> int:
    """Of a GPU all that ticks and their recordings leave; on a CPU a quarter of what is available, at most 4 GiB."""
    device = models[MAIN].info.device
    if device.type != "cuda":
        return min(4 << 30, available_memory() // 4)
    longest = _longest(start, models)
    num_recordings = sum(len(each.recordings(start.max_rows, longest)) for each in models.values())
    torch.cuda.empty_cache()  # merged weights leave their parts' memory with torch, where it does not count as free
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, free - largest_tick.bytes_to_leave(peak_bytes, num_recordings))


def _peak_bytes(start: Start, model: Model) -> int:
    """Of the largest tick, over pages for just that; 0 on a CPU, where nothing goes by it."""
    if model.info.device.type != "cuda":
        return 0
    tick_tokens, longest = _tick_tokens(start, model.info.device), _longest(start, {MAIN: model})
    max_source_len = model.encoder.max_source_len if model.encoder is not None else 0
    asked = largest_tick.requests(start.max_rows, tick_tokens, longest, model.info.vocab_size, max_source_len)
    lengths = len(asked[0].prompt_ids) + 1, len(asked[0].source_ids)
    pages = 1 + start.max_rows * _pages_each(model.attention, *lengths)
    model.attention.allocate(pages)
    engine = _engine(start, {MAIN: model}, Sizes(longest, {MAIN: pages}, max_source_len))
    peak = largest_tick.peak_bytes(lambda: largest_tick.run(engine, asked), model.info.device)
    model.attention.allocate(0)
    return peak


def canaries(model: Model, sizes: Sizes) -> list[tuple[int, ...]]:
    """Prompts whose decoding brings every kernel of the model to be compiled now, and not while requests wait."""
    if model.info.device.type == "cpu":
        return [CANARY]
    longest = min(sizes.max_model_len, (sizes.num_pages[MAIN] - 1) * model.attention.page_size) - 2
    long = tuple(i % model.info.vocab_size for i in range(min(GPU_CANARY_TOKENS, longest)))
    return [CANARY, long] if len(long) > len(CANARY) else [CANARY]


def _run_plainly(model: Model, prompt: tuple[int, ...]) -> None:
    """On a GPU: as a prompt runs that no recording is for; the canary's own forwards are recorded ones."""
    if model.info.device.type != "cpu" and model.encoder is None:
        model.forward(Batch.of_one_row(np.array(prompt), model.attention.page_size), shift=1)


def _decode_canary(engine: Engine, prompt: tuple[int, ...], source: tuple[int, ...]) -> None:
    """Two greedy tokens end to end: proves that the model runs before the server says it is ready.

    With log-probs, so that no later request waits for what computes them to be compiled. source: empty where there is
    no encoder.
    """
    request = Request(
        prompt,
        logits=LogitsParams(temperature=0),
        stopping=StoppingParams(max_tokens=2),
        logprobs=LogprobsParams(output=1),
        source_ids=source,
    )
    engine.add(0, request, build)
    while engine.has_work:
        for output in engine.tick():
            if output.failure is not None:
                raise RuntimeError(f"the canary request failed: {output.failure.message}") from output.failure.cause
    engine.check_integrity()
