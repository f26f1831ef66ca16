"""transformers' own ways to decode fast: continuous batching (`generate_batch`) and a compiled static cache."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from loadtest.engine.gpu_box import synchronize

Peer = Callable[[Any, Sequence[Sequence[int]], int], None]
"""Generates so many tokens for each prompt, greedily; raises where it cannot."""


def continuous_batching(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    found = model.generate_batch(
        [list(prompt) for prompt in prompts], generation_config=_config(new_tokens), progress_bar=False
    )
    lengths = [len(output.generated_tokens) for output in found.values()]
    if lengths != [new_tokens] * len(prompts):
        raise RuntimeError(f"{len(lengths)} of {len(prompts)} answers, of {set(lengths)} tokens")


def static_cache(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """On a GPU transformers compiles the decode step of this cache by itself."""
    ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    config = _config(new_tokens)
    config.cache_implementation = "static"
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    if out.shape[1] != ids.shape[1] + new_tokens:
        raise RuntimeError(f"{out.shape[1] - ids.shape[1]} tokens of {new_tokens}")


PEERS: dict[str, Peer] = {"continuous-batching": continuous_batching, "static-cache": static_cache}


def seconds_of(
    peer: Peer, model: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> tuple[float | None, str | None]:
    """Time of the second of two runs, or why there is none. The first compiles and records."""
    try:
        peer(model, prompts, new_tokens)
        synchronize(model.device)
        started = time.perf_counter()
        peer(model, prompts, new_tokens)
        synchronize(model.device)
        return time.perf_counter() - started, None
    except Exception as error:  # whatever a peer fails of, it is its result
        return None, f"{type(error).__name__}: {error}"[:200]
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _config(new_tokens: int) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=0
    )
