"""What the steps share: the device, its limits once measured, and the one model that is in memory for speed."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from decoding.model.loading import wrap
from loadtest.engine.bench import Bench, Load
from loadtest.engine.machine import Box
from loadtest.gpu_accept.runner import Skip
from loadtest.gpu_accept.scale import Scale
from loadtest.gpu_accept.shapes import Work, build, work_of

CHECKED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """A shape's model in an engine. own_logprobs: transformers' own, of the prompt's tokens but the first."""

    shape: str
    work: Work
    bench: Bench
    prompt: tuple[int, ...]
    own_logprobs: tuple[float, ...]
    is_batch_invariant: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.bench.model.info.dtype


@dataclass(slots=True)
class Session:
    """plain: figures of each shape as it is served by default, to compare others with."""

    device: torch.device
    dtype: torch.dtype
    scale: Scale
    measured: Box | None = None
    opened: Subject | None = None
    plain: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def box(self) -> Box:
        if self.measured is None:
            raise Skip("what the machine can do was not measured")
        return self.measured

    @property
    def subject(self) -> Subject:
        if self.opened is None:
            raise Skip("the model could not be built")
        return self.opened

    def load(self) -> Load:
        scale = self.scale
        return Load(scale.most_rows, scale.prompt, scale.new, max(*scale.prefill, CHECKED_TOKENS + scale.new) + 1)

    def open(self, shape: str, *, is_batch_invariant: bool = False) -> Subject:
        """The shape's model, in the place of the one before."""
        self.close()
        causal_lm = build(shape, self.device, self.dtype)
        work = work_of(causal_lm)
        generator = torch.Generator().manual_seed(1)
        prompt = torch.randint(0, causal_lm.config.vocab_size, (CHECKED_TOKENS,), generator=generator).tolist()
        expected = _own_logprobs(causal_lm, prompt)
        model = wrap(causal_lm, is_batch_invariant=is_batch_invariant)
        bench = Bench(model, self.load())
        self.opened = Subject(shape, work, bench, tuple(prompt), expected, is_batch_invariant)
        return self.opened

    def close(self) -> None:
        self.opened = None
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def free_bytes(self) -> int | None:
        """Of the device's memory, what torch keeps for later included. None on a CPU."""
        if not self.is_gpu:
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)


@torch.inference_mode()
def _own_logprobs(causal_lm: Any, prompt: Sequence[int]) -> tuple[float, ...]:
    ids = torch.tensor([list(prompt)], device=causal_lm.device)
    scores = causal_lm(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return tuple(scores.gather(1, ids[0, 1:, None])[:, 0].tolist())
