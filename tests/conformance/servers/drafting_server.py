"""The real server with a draft model, for a machine on which other work runs as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.thinned import thinned
from tests.running_server import RunningServer, running_server

PATIENT = ("--stall-seconds", "120", "--stall-kill-seconds", "300")


@contextmanager
def drafting_server(model: Path, draft: Path, *flags: str) -> Iterator[RunningServer]:
    """`draft` is where the draft model is put. Threads wait asleep: spinning on a busy machine slows a tick tenfold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")
        with running_server(*flags, *PATIENT, "--draft-model", str(thinned(model, draft))) as server:
            yield server
