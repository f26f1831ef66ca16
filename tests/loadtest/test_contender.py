import shlex
import sys

import pytest

from loadtest.client import Client
from loadtest.contender import NotReady, Paused, Ready, Restarted, Running
from loadtest.process import ServerDied, ServerProcess
from loadtest.target import Target, dialect
from tests.loadtest.fake_server import Request, plain, serving
from tests.running_server import free_port


def fake(port: int) -> ServerProcess:
    return ServerProcess(shlex.join([sys.executable, "-m", "tests.loadtest.fake_server", str(port)]))


def client(url: str, timeout: float = 5.0) -> Client:
    return Client(Target(url=url, dialect=dialect("openai")), timeout)


def ready(url: str, limit: float = 20.0) -> Ready:
    return Ready(client(url), "/ready", limit)


async def test_a_server_is_ready_when_it_answers_200_not_before() -> None:
    answers = iter(["503 Loading", "503 Loading", "200 OK"])

    def loading(_: Request) -> list[bytes]:
        return plain(next(answers), b"")

    async with serving(loading) as server:
        await ready(server.url).wait()
    assert [request.path for request in server.requests] == ["/ready"] * 3


async def test_a_server_that_never_gets_ready_is_given_up() -> None:
    async with serving(lambda _: plain("503 Loading", b"")) as server:
        with pytest.raises(NotReady, match="/ready"):
            await ready(server.url, limit=0.0).wait()


async def test_a_server_that_dies_while_it_loads_is_not_waited_for() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    process = ServerProcess(shlex.join([sys.executable, "-c", "raise SystemExit(3)"]))
    contender = Restarted(process, ready(url))
    with pytest.raises(ServerDied):
        async with contender.turn():
            raise AssertionError("it never was ready")


async def test_a_running_server_is_left_alone() -> None:
    async with serving() as server, Running(ready(server.url)).turn() as seconds:
        assert seconds is None


async def test_a_paused_server_answers_in_its_turn_only() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    contender = Paused(fake(port), ready(url))
    try:
        await contender.open()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await client(url, timeout=0.1).get("/ready")
            async with contender.turn():
                assert (await client(url).get("/ready"))[0] == 200
    finally:
        await contender.close()
    with pytest.raises(ConnectionRefusedError):
        await client(url).get("/ready")


async def test_a_restarted_server_lives_for_its_turn_and_tells_how_long_it_took() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    contender = Restarted(fake(port), ready(url))
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await client(url).get("/ready")
        async with contender.turn() as seconds:
            assert seconds is not None
            assert 0 < seconds < 20
            assert (await client(url).get("/ready"))[0] == 200
