"""As much of openvino_genai as the peer's server touches: every step makes one token a request, 1, 2, 3, …

What the pipeline is asked is written to standard output, a line each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class SchedulerConfig(SimpleNamespace):
    pass


class GenerationConfig(SimpleNamespace):
    pass


def _tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


@dataclass
class Handle:
    number: int
    config: GenerationConfig
    made: int = 0
    status: str = "RUNNING"
    unread: list[dict[int, Any]] = field(default_factory=list)

    def step(self) -> None:
        self.made += 1
        if self.made == self.config.max_new_tokens:
            self.status = "FINISHED"
        if self.config.num_beams == 1:
            self.unread.append({7: SimpleNamespace(generated_ids=[self.made])})
        elif self.status == "FINISHED":
            ids = list(range(1, self.made + 1))
            self.unread.append({beam + 7: SimpleNamespace(generated_ids=ids) for beam in range(self.config.num_beams)})

    def get_status(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.status)

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> dict[int, Any]:
        return self.unread.pop(0)

    def cancel(self) -> None:
        self.status = "CANCEL"
        _tell(cancelled=self.number)


class Tokenizer:
    def get_vocab(self) -> dict[bytes, int]:
        return {b" word%d" % number: number for number in range(100_000)}

    def encode(self, prompt: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=SimpleNamespace(shape=(1, len(prompt.split()))))


class ContinuousBatchingPipeline:
    def __init__(self, model: str, scheduler: SchedulerConfig, device: str, properties: dict[str, Any]) -> None:
        _tell(model=model, scheduler=vars(scheduler), device=device, properties=properties)
        self._running: list[Handle] = []

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def add_request(self, number: int, prompt_ids: Any, config: GenerationConfig) -> Handle:
        self._running.append(Handle(number, config))
        _tell(added=number, prompt_tokens=prompt_ids.shape[-1], config=vars(config))
        return self._running[-1]

    def step(self) -> None:
        self._running = [handle for handle in self._running if handle.status == "RUNNING"]
        _tell(step=[handle.number for handle in self._running])
        for handle in self._running:
            handle.step()
