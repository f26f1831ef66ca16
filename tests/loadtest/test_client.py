import asyncio

from loadtest.client import Client
from loadtest.outcome import Completed, Failed
from loadtest.target import Target, dialect
from tests.loadtest.fake_server import HEAD, FakeServer, Request, chunked, finish, plain, serving, text


def client(fake: FakeServer, timeout: float = 5.0, path: str = "") -> Client:
    return Client(Target(url=fake.url + path, dialect=dialect("polydecode"), model="m", api_key="sesame"), timeout)


def cut_off(_: Request) -> list[bytes]:
    return [HEAD.encode(), chunked(text("a"))]


def until_closed(_: Request) -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\n\r\n", text("a"), finish(3, 1)]


def refuse(_: Request) -> list[bytes]:
    return plain("429 Too Many Requests", b'{"error": {"message": "queue full"}}')


def gibberish(_: Request) -> list[bytes]:
    return [b"220 smtp ready\r\n"]


def silence(_: Request) -> list[bytes]:
    return []


async def test_a_whole_answer_is_completed() -> None:
    async with serving() as fake:
        outcome = await client(fake).complete("hello", 5)
    assert isinstance(outcome, Completed)
    assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.wanted_tokens) == (7, 5, 5)
    assert outcome.started < outcome.arrivals[0] <= outcome.ended


def whole(_: Request) -> list[bytes]:
    choices = b'[{"text": "a b", "finish_reason": "length"}, {"text": "c", "finish_reason": "stop"}]'
    return plain("200 OK", b'{"choices": %s, "usage": {"prompt_tokens": 3, "completion_tokens": 6}}' % choices)


def unfinished(_: Request) -> list[bytes]:
    return plain("200 OK", b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}')


async def test_an_answer_that_is_not_streamed_arrives_when_it_ends() -> None:
    async with serving(whole) as fake:
        target = Target(url=fake.url, dialect=dialect("vllm"))
        outcome = await Client(target).complete("hello", 4, beams=2)
    assert isinstance(outcome, Completed)
    assert (outcome.completion_tokens, outcome.wanted_tokens) == (6, 8)
    assert outcome.arrivals == (outcome.ended,)


async def test_a_plain_answer_without_an_end_is_truncated() -> None:
    async with serving(unfinished) as fake:
        outcome = await Client(Target(url=fake.url, dialect=dialect("vllm"))).complete("hello", 4, beams=2)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "truncated"


async def test_the_length_asked_for_is_the_one_that_was_sent() -> None:
    async with serving() as fake:
        target = Target(url=fake.url, dialect=dialect("polydecode"), extra={"max_tokens": 2})
        outcome = await Client(target).complete("hello", 5)
    assert isinstance(outcome, Completed)
    assert (outcome.completion_tokens, outcome.wanted_tokens) == (2, 2)


async def test_the_request_is_well_formed() -> None:
    async with serving() as fake:
        await client(fake).complete("hällo", 5)
    (request,) = fake.requests
    assert (request.method, request.path, request.body["prompt"]) == ("POST", "/v1/completions", "hällo")
    assert request.headers["authorization"] == "Bearer sesame"
    assert request.headers["host"] == fake.url.removeprefix("http://")


async def test_a_path_before_the_api_is_kept() -> None:
    async with serving() as fake:
        await client(fake, path="/proxy").complete("hello", 5)
    assert fake.requests[0].path == "/proxy/v1/completions"


async def test_time_counts_from_when_a_request_was_due() -> None:
    async with serving() as fake:
        outcome = await client(fake).complete("hello", 5, started=-1000.0)
    assert isinstance(outcome, Completed)
    assert outcome.end_to_end > 1000


async def test_a_refusal_is_an_error_of_its_status() -> None:
    async with serving(refuse) as fake:
        outcome = await client(fake).complete("hello", 5)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "429"
    assert "queue full" in outcome.detail


async def test_a_stream_cut_off_is_not_an_answer() -> None:
    async with serving(cut_off) as fake:
        outcome = await client(fake).complete("hello", 5)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "truncated"


async def test_a_body_may_end_with_its_connection() -> None:
    async with serving(until_closed) as fake:
        assert isinstance(await client(fake).complete("hello", 5), Completed)


async def test_what_is_not_http_and_what_is_nothing_are_errors() -> None:
    async with serving(gibberish) as fake:
        outcome = await client(fake).complete("hello", 5)
        assert isinstance(outcome, Failed)
        assert outcome.kind == "protocol"
    async with serving(silence) as fake:
        outcome = await client(fake).complete("hello", 5)
        assert isinstance(outcome, Failed)
        assert outcome.kind == "connection"


async def test_a_server_that_is_not_there_is_an_error() -> None:
    async with serving() as fake:
        pass
    outcome = await client(fake).complete("hello", 5)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "connect"


async def test_a_server_that_never_answers_runs_into_the_timeout() -> None:
    accepted: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outcome = await Client(Target(url=url, dialect=dialect("openai")), timeout=0.05).complete("hello", 5)
        accepted[0].close()
    assert isinstance(outcome, Failed)
    assert outcome.kind == "timeout"
