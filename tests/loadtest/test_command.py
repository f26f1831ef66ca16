"""The commands as people type them, in a process of their own, against a server on a real socket."""

import asyncio
import json
import shlex
import signal
import sys
from pathlib import Path

import pytest

from tests.loadtest.fake_server import Request, answer, plain, serving
from tests.loadtest.test_process import content, state
from tests.loadtest.until import until
from tests.running_server import free_port


async def loadtest(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"COLUMNS": "120"},
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_list_names_the_scenarios() -> None:
    code, output = await loadtest("list")
    assert code == 0
    for name in ("single", "streams-16", "streams-64", "shared-prefix", "prefill", "mixed"):
        assert name in output


async def test_run_prints_a_table_and_writes_json_without_the_key(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    async with serving() as server:
        code, output = await loadtest(
            *("run", "single", "--url", server.url, "--requests", "2", "--seed", "5"),
            *("--api-key", "sesame", "--json", str(file)),
        )
    assert code == 0, output
    assert "output throughput" in output
    assert "sesame" not in output + file.read_text()
    result = json.loads(file.read_text())
    assert (result["scenario"]["name"], result["seed"], result["target"]["model"]) == ("single", 5, "fake")
    assert (result["summary"]["completed"], result["summary"]["completion_tokens"]) == (2, 256)
    assert len(result["outcomes"]) == 2
    posts = [request for request in server.requests if request.method == "POST"]
    assert len(posts) == 3  # with the warm-up
    assert {request.body["model"] for request in posts} == {"fake"}


async def test_run_counts_errors_and_fails_if_nothing_was_answered() -> None:
    def refuse(request: Request) -> list[bytes]:
        return plain("503 Service Unavailable", b"draining") if request.method == "POST" else answer(request)

    async with serving(refuse) as server:
        code, output = await loadtest("run", "single", "--url", server.url)
    assert code == 1
    assert "error 503" in output


async def test_curve_plays_every_point_and_writes_and_draws_them(tmp_path: Path) -> None:
    file, plot = tmp_path / "curve.json", tmp_path / "curve.png"
    async with serving() as server:
        code, output = await loadtest(
            *("curve", "streams", "beams", "--url", server.url, "--most", "4", "--seed", "5"),
            *("--json", str(file), "--plot", str(plot)),
        )
    assert code == 0, output
    assert "streams: prompts of 32 words" in output
    streams, beams = json.loads(file.read_text())["curves"]
    assert [point["x"] for point in streams["points"]] == [point["x"] for point in beams["points"]] == [1, 2, 4]
    assert [point["summary"]["completed"] for point in streams["points"]] == [2, 2, 4]
    assert plot.read_bytes().startswith(b"\x89PNG")
    widths = [request.body.get("num_beams", 1) for request in server.requests if request.method == "POST"]
    assert {1, 2, 4} == set(widths)


@pytest.mark.parametrize("between", ["pause", "restart"])
async def test_compare_starts_both_servers_and_prints_ratios(between: str, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    sides = [
        (f"--{side}-url", f"http://127.0.0.1:{port}", f"--{side}-command", shlex.join(fake_command(port)))
        for side, port in zip("ab", ports, strict=True)
    ]
    file = tmp_path / "result.json"
    code, output = await loadtest(
        *("compare", "single", "--requests", "1", "--warmup", "0", "--pairs", "2", "--between", between),
        *(*sides[0], *sides[1], "--json", str(file)),
    )
    assert code == 0, output
    assert "higher is better" in output
    (comparison,) = json.loads(file.read_text())["comparisons"]
    assert len(comparison["pairs"]) == 2
    assert comparison["ratios"]["output tokens"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert ("time to ready" in output) == (between == "restart")
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_table_measures_all_in_one_and_leaves_out_what_one_cannot(tmp_path: Path) -> None:
    ours, peer = free_port(), free_port()
    contenders, file = tmp_path / "contenders.toml", tmp_path / "result.json"
    contenders.write_text(
        f"""
        [ours]
        url = "http://127.0.0.1:{ours}"
        command = '{shlex.join(fake_command(ours))}'
        ["the peer"]
        url = "http://127.0.0.1:{peer}"
        command = '{shlex.join(fake_command(peer))}'
        dialect = "llama-cpp"
        """,
        encoding="utf-8",
    )
    code, output = await loadtest(
        *("table", "single", "beams", "--contenders", str(contenders), "--against", "the peer", "ours"),
        *("--requests", "4", "--warmup", "0", "--rounds", "2", "--seed", "5", "--json", str(file)),
    )
    assert code == 0, output
    assert output.count("median of 2 rounds") == 2
    assert "by the peer" in output
    assert "by ours" in output
    single, beams = json.loads(file.read_text())["columns"]
    assert {name: len(turns) for name, turns in single["turns"].items()} == {"ours": 2, "the peer": 2}
    assert set(beams["turns"]) == {"ours"}
    for port in (ours, peer):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_table_cut_short_keeps_the_loads_that_were_done(tmp_path: Path) -> None:
    contenders, file = tmp_path / "contenders.toml", tmp_path / "result.json"
    async with serving() as server:
        contenders.write_text(f"[ours]\nurl = '{server.url}'\nready = '/v1/models'\n", encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtest", "table", "single", "mixed", "--contenders", str(contenders)),
            *("--rounds", "1", "--json", str(file)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await until(lambda: any(request.body.get("max_tokens", 128) != 128 for request in server.requests))
        process.send_signal(signal.SIGTERM)  # in the second, which takes its time
        output, _ = await process.communicate()
    assert process.returncode == 130
    assert "single, tok/s" in output.decode()
    assert [column["scenario"]["name"] for column in json.loads(file.read_text())["columns"]] == ["single"]


def fake_command(port: int) -> list[str]:
    return [sys.executable, "-m", "tests.loadtest.fake_server", str(port)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_comparison_cut_short_leaves_no_server_behind(number: signal.Signals, tmp_path: Path) -> None:
    port, pid_file = free_port(), tmp_path / "pid"
    never_ready = [sys.executable, "-c", f"import os, time; print(os.getpid(), file=open({str(pid_file)!r}, 'w')); "]
    never_ready[-1] += "time.sleep(600)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", "compare", "single"),
        *("--a-url", f"http://127.0.0.1:{port}", "--a-command", shlex.join(fake_command(port))),
        *("--b-url", f"http://127.0.0.1:{free_port()}", "--b-command", shlex.join(never_ready)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    await until(lambda: bool(content(pid_file)))
    process.send_signal(number)
    _, errors = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert state(int(content(pid_file))) in "XZ"
    with pytest.raises(ConnectionRefusedError):  # the paused one too
        await asyncio.open_connection("127.0.0.1", port)
