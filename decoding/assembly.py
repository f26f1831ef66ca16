"""From a loaded model to an engine that has decoded a token: sizes the KV cache by the memory there is."""

from __future__ import annotations

import torch

from decoding.cache import PageCache
from decoding.engine import MAIN, Engine
from decoding.frames import Loaded, Start
from decoding.memory import available_memory
from decoding.model import Model
from decoding.params import LogitsParams, Request, StoppingParams
from decoding.strategies import build

# Prefill tokens a tick: every running stream waits for them, so a CPU takes fewer. Both fill the machine.
CPU_TICK_TOKENS = 256
GPU_TICK_TOKENS = 8192


def build_engine(start: Start, model: Model) -> tuple[Engine, Loaded]:
    """Size the KV cache, make the engine, decode one canary token. Raises ValueError where the memory is too small."""
    info = model.info
    max_model_len = min(info.max_model_len, start.max_model_len or info.max_model_len)
    page_size = model.attention.page_size
    num_pages = _num_pages(start, model, max_model_len)
    max_model_len = min(max_model_len, (num_pages - 1) * page_size)
    model.attention.allocate(num_pages)
    engine = Engine(
        {MAIN: model},
        {MAIN: PageCache(num_pages, page_size)},
        eos_token_ids=info.eos_token_ids,
        token_bytes=start.token_bytes,
        max_rows=start.max_rows,
        tick_tokens=start.tick_tokens or (CPU_TICK_TOKENS if info.device.type == "cpu" else GPU_TICK_TOKENS),
        max_model_len=max_model_len,
        shares_prefixes=start.prefix_cache,
    )
    _decode_canary(engine)
    loaded = Loaded(
        vocab_size=info.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=info.eos_token_ids,
        num_pages=num_pages,
        page_size=page_size,
        max_rows=start.max_rows,
        device=str(info.device),
        dtype=str(info.dtype).removeprefix("torch."),
        architecture=info.architecture,
    )
    return engine, loaded


def _num_pages(start: Start, model: Model, max_model_len: int) -> int:
    """Pages that the configured memory holds (page 0 included), never more than all rows at full length could use."""
    page_size = model.attention.page_size
    most = 1 + start.max_rows * -(-max_model_len // page_size)
    memory = start.kv_memory_bytes or _default_kv_memory(model.info.device)
    num_pages = min(most, memory // model.attention.bytes_per_page())
    if num_pages < 2:
        raise ValueError("kv_memory is too small for a single page")
    return int(num_pages)


def _default_kv_memory(device: torch.device) -> int:
    """Nine tenths of the free memory of a GPU; on a CPU a quarter of what is available, at most 4 GiB."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.9)
    return min(4 << 30, available_memory() // 4)


def _decode_canary(engine: Engine) -> None:
    """One greedy token end to end: proves that the model runs before the server says it is ready."""
    request = Request((0, 1, 2), logits=LogitsParams(temperature=0), stopping=StoppingParams(max_tokens=2))
    engine.add(0, request, build)
    while engine.has_work:
        for output in engine.tick():
            if output.failure is not None:
                raise RuntimeError(f"the canary request failed: {output.failure.message}") from output.failure.cause
    engine.check_integrity()
