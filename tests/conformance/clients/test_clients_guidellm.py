"""guidellm runs to completion against the server, and its figures are those of what it asked for."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conformance.clients.environment import run_client
from tests.running_server import RunningServer

MODEL = "SmolLM2-135M-Instruct"


def test_guidellm_counts_every_request_and_token(
    smol_server: RunningServer, smol_directory: Path, tmp_path: Path
) -> None:
    output = tmp_path / "report.json"
    arguments = (smol_server.url, MODEL, str(smol_directory), str(output))
    run_client("guidellm", ["guidellm>=0.8"], "guidellm_client.py", *arguments)
    (benchmark,) = json.loads(output.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    assert (metrics["request_totals"]["successful"], metrics["request_totals"]["errored"]) == (12, 0)
    assert metrics["output_token_count"]["successful"]["mean"] == 16
    assert metrics["prompt_token_count"]["successful"]["mean"] >= 64
    first, last = (metrics[name]["successful"]["median"] for name in ("time_to_first_token_ms", "request_latency"))
    assert 0 < first < last * 1000
    assert 3 < metrics["request_concurrency"]["successful"]["mean"] <= 4
