"""A soak of seconds, as people start it: a server of its own, workers killed; and what its judgements rest on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from loadtest.options import SoakOptions, parse
from loadtest.soak.exchange import ask, judge
from loadtest.soak.report import soak_document, soak_tables
from loadtest.soak.soaker import Plan, Soak
from loadtest.soak.trend import Point, fit, trends
from loadtest.target import DIALECTS, Target
from tests.conformance.servers.scripted_server import COMMAND, SHORT_DELAY, scripted_model
from tests.loadtest.fake_server import Request, serving
from tests.loadtest.test_command import loadtest
from tests.running_server import free_port

PLAN = Plan(seconds=60, users=1, kill_every=0, burst_every=0, burst=1, sample_every=1, timeout=5, seed=1)
ERROR = b'{"error": {"message": "no", "type": "invalid_request_error", "param": null, "code": null}}'
WHOLE = b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {}}'


async def test_a_soak_of_seconds_answers_everybody_and_its_counts_add_up(tmp_path: Path) -> None:
    port, document, picture = free_port(), tmp_path / "soak.json", tmp_path / "soak.png"
    model = scripted_model(tmp_path / "model", '{"max_model_len": 4000}')
    command = [*COMMAND, "--model", str(model), "--port", str(port), "--max-queue", "20", *SHORT_DELAY]
    code, output = await loadtest(
        *("soak", "--url", f"http://127.0.0.1:{port}", "--command", shlex.join(command)),
        *("--minutes", "0.12", "--users", "6", "--kill-every", "3", "--burst-every", "1", "--burst", "40"),
        *("--sample-every", "0.2", "--json", str(document), "--plot", str(picture)),
    )
    assert code == 0, output
    assert "unanswered (must be 0)" in output
    found = json.loads(document.read_text())
    assert found["unanswered"] == []
    left = sum(line["count"] for line in found["traffic"] if line["kind"].startswith("left"))
    assert 50 < found["counted"] <= found["sent"] <= found["counted"] + left  # some leave before they are read
    assert len(found["kills"]) >= 1
    kinds = {(line["kind"], line["verdict"]) for line in found["traffic"]}
    assert ("bad", "refused") in kinds
    assert "burst" in {kind for kind, _ in kinds}
    assert "answered" in {verdict for _, verdict in kinds}
    by_name = {trend["name"]: trend for trend in found["trends"]}
    lives = {role: {point["life"] for point in by_name[f"{role} memory"]["points"]} for role in ("server", "worker")}
    assert len(lives["server"]) == 1 < len(lives["worker"])
    assert by_name["server descriptors"]["end"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, WHOLE, "answered"),
        (200, b'{"choices": [{"text": "a", "finish_reason": null}]}', "unanswered"),
        (200, b"data: {}\n\ndata: [DONE]\n\n", "answered"),
        (200, b"data: {}\n\ndata: " + ERROR + b"\n\n", "failed"),
        (200, b'data: {"choices": []}\n\n', "unanswered"),
        (200, b"", "unanswered"),
        (400, ERROR, "refused"),
        (503, ERROR, "refused"),
        (500, b"Internal Server Error", "unanswered"),
        (400, b'{"detail": "no"}', "unanswered"),
        (None, b"", "unanswered"),
    ],
)
def test_only_a_whole_answer_or_an_error_that_says_so_is_an_answer(status: int, body: bytes, verdict: str) -> None:
    assert judge(status, body) == verdict


async def test_an_answer_that_is_cut_off_or_never_comes_is_unanswered() -> None:
    def torn(request: Request) -> list[bytes]:
        return [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ndata: {}"]

    def silent(request: Request) -> list[bytes]:
        return []

    for play in (torn, silent):
        async with serving(play) as server:
            target = Target(server.url, DIALECTS[0])
            assert (await ask(target, b"{}", "whole", Random(1), limit=3)).verdict == "unanswered"
            assert (await ask(target, b"{}", "leave", Random(1), limit=3)).verdict == "left"
    assert (await ask(target, b"{}", "whole", Random(1), limit=3)).verdict == "unanswered"  # nobody listens any more


def test_a_slope_is_that_of_the_lives_and_not_of_their_differences() -> None:
    """A worker starts anew at a lower level; within its life it grows by 3 a minute."""
    old = [Point(float(s), 100 + s / 20, life=1) for s in range(0, 60, 2)]
    new = [Point(float(s), 10 + s / 20, life=2) for s in range(60, 120, 2)]
    assert fit(old + new) == pytest.approx(3)
    assert fit([Point(1.0, 5.0)]) is None


def points(soak: Soak, name: str) -> Sequence[Point]:
    return next((trend.points for trend in trends(soak) if trend.name == name), ())


def test_a_soak_without_a_server_to_look_at_still_reports() -> None:
    soak = Soak(PLAN)
    assert trends(soak) == []
    assert soak_tables(soak, []) is not None
    assert soak_document(soak, [], Target("http://h", DIALECTS[0], api_key="sesame"))["counted"] is None
    assert points(soak, "server memory") == ()


def test_kills_need_a_worker_to_kill(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["soak", "--url", "http://h", "--kill-every", "5"])
    assert "--kill-every needs --command or --pid" in capsys.readouterr().err
    options = parse(["soak", "--url", "http://h", "--pid", "7", "--kill-every", "5", "--minutes", "0.5"])
    assert isinstance(options, SoakOptions)
    assert (options.plan.seconds, options.plan.kill_every, options.pid) == (30, 5, 7)
