"""The monitoring configuration asks for metrics that the server has."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

from tests.running_server import RunningServer

CONFIGS = Path(__file__).parent.parent / "configs"


def test_every_metric_of_the_dashboard_is_exposed(smol_server: RunningServer) -> None:
    dashboard = json.loads((CONFIGS / "grafana/dashboards/polydecode.json").read_text())
    asked = {name for panel in dashboard["panels"] for t in panel["targets"] for name in _metrics_of(t["expr"])}
    _complete(smol_server.url)  # a labelled series begins with its first request
    with urllib.request.urlopen(f"{smol_server.url}/metrics", timeout=10) as answer:
        exposed = set(re.findall(r"^(\w+)[{ ]", answer.read().decode(), re.MULTILINE))
    assert asked
    assert not asked - exposed


def _complete(url: str) -> None:
    body = json.dumps({"prompt": "Hello", "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()


def _metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"polydecode_\w+", expression))


def test_prometheus_scrapes_the_composed_service_by_its_name() -> None:
    compose = (CONFIGS / "compose.yml").read_text()
    assert re.search(r"^  polydecode:$", compose, re.MULTILINE)
    assert '"polydecode:8000"' in (CONFIGS / "prometheus.yml").read_text()
