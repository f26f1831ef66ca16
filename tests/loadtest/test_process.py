import shlex
import signal
import sys
from pathlib import Path

import pytest

from loadtest.process import ServerDied, ServerProcess
from tests.loadtest.until import until

FAMILY = """
import subprocess, sys, pathlib
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
child.wait()
"""


def python(*arguments: str) -> ServerProcess:
    return ServerProcess(shlex.join([sys.executable, *arguments]))


def content(file: Path) -> str:
    return file.read_text() if file.exists() else ""


async def written(file: Path) -> int:
    await until(lambda: bool(content(file)))
    return int(content(file))


def state(pid: int) -> str:
    """One letter of /proc; X once the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


async def reaches(pid: int, states: str) -> bool:
    await until(lambda: state(pid) in states)
    return True


def has_died(process: ServerProcess) -> bool:
    try:
        process.check()
    except ServerDied:
        return True
    return False


async def test_pausing_takes_children_off_the_processors_too(tmp_path: Path) -> None:
    process = python("-c", FAMILY, str(tmp_path / "pid"))
    await process.start()
    try:
        child = await written(tmp_path / "pid")
        process.pause()
        assert await reaches(child, "T")
        process.resume()
        assert await reaches(child, "RS")
    finally:
        await process.stop()
    assert await reaches(child, "XZ")


async def test_stopping_a_paused_server_ends_it(tmp_path: Path) -> None:
    process = python("-c", FAMILY, str(tmp_path / "pid"))
    await process.start()
    child = await written(tmp_path / "pid")
    process.pause()
    await process.stop()
    assert await reaches(child, "XZ")


async def test_a_server_that_ends_by_itself_says_why() -> None:
    process = python("-c", "print('no such model [smol]'); raise SystemExit(3)")
    await process.start()
    await until(lambda: has_died(process))
    with pytest.raises(ServerDied, match=r"(?s)ended with 3.*no such model \[smol\]"):
        process.check()
    await process.stop()


async def test_a_server_deaf_to_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loadtest.process._GRACE_SECONDS", 0.1)
    deaf = f"import signal; signal.signal({int(signal.SIGTERM)}, signal.SIG_IGN)" + FAMILY
    process = python("-c", deaf, str(tmp_path / "pid"))
    await process.start()
    child = await written(tmp_path / "pid")
    await process.stop()
    assert await reaches(child, "XZ")
