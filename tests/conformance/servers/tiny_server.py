"""The real server and worker with a model of random weights: all of it is real but what it says, and it loads soon."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.decoding.tiny import tiny
from tests.running_server import RunningServer, running_server
from tests.server.fake_engine import TEMPLATE, byte_tokenizer

FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "0.02")
COMMAND = (sys.executable, "-m", "server", "serve")
PROMPTS = ((5, 6, 7, 8), (40, 41, 42, 43, 44, 45), tuple(range(60, 90)))


def tiny_model(path: Path) -> Path:
    tokenizer = byte_tokenizer()
    tiny("llama", vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=2048).save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return path


@contextmanager
def tiny_server(model: Path, *flags: str, command: Sequence[str] = COMMAND) -> Iterator[RunningServer]:
    with running_server("--model", str(model), *FLAGS, *flags, command=command) as server:
        yield server
