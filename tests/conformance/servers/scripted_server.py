"""The real HTTP side before a scripted worker, which starts in a moment and dies, stalls or answers as it is told.

`python -m tests.conformance.servers.scripted_server FLAGS` serves it; `scripted_server` runs it for a test. What a
request gets is said by its first prompt id (`tests/server/fake_worker.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.http.server import bind
from server.observe import logs
from server.service import Parts, Service
from server.settings.settings import load
from server.worker.progress import LineDisplay
from tests.running_server import RunningServer, running_server
from tests.server.fake_engine import byte_tokenizer
from tests.server.world import FAKE_WORKER, model_directory

COMMAND = (sys.executable, "-m", "tests.conformance.servers.scripted_server")
SHORT_DELAY = ("--restart-delay", "0.000001", "--worker-restarts", "100")  # it doubles: 20 kills must not make minutes


def scripted_model(path: Path, plan: str = "{}") -> Path:
    """A directory that passes for a model: a tokenizer of bytes, and the worker's plan."""
    directory = model_directory(path, plan)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    return directory


@contextmanager
def scripted_server(model: Path, *flags: str) -> Iterator[RunningServer]:
    with running_server("--model", str(model), *flags, command=COMMAND) as server:
        yield server


def main() -> int:
    settings = load(sys.argv[1:]).settings
    logs.configure(settings.log_format, settings.log_level)
    with bind(settings.host, settings.port) as listener:
        failure = Service(settings, LineDisplay(sys.stderr), Parts(FAKE_WORKER)).run(listener)
    print(failure or "", file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
