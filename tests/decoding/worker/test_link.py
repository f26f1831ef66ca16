"""The worker's end of the socket to the server."""

from __future__ import annotations

import fcntl
import resource
import socket
from collections.abc import Iterator

import pytest

from decoding.contract.frames import Cancel, encode
from decoding.worker.link import Link

HIGH = 1500  # as the socket's number is in a server with that many connections; `select` can handle 1023


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= 2 * HIGH:
        pytest.skip("may not open enough files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * HIGH), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_socket_may_have_any_number(many_descriptors: None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(fileno=fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, HIGH)) as high:
        link = Link(high)
        assert list(link.receive(0)) == []
        ours.sendall(encode(Cancel(7)))
        assert link.receive_one() == Cancel(7)


def test_frames_that_come_together_are_taken_one_by_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(theirs)
        ours.sendall(encode(Cancel(1)) + encode(Cancel(2)) + encode(Cancel(3)))
        assert [link.receive_one(), link.receive_one()] == [Cancel(1), Cancel(2)]
        assert list(link.receive(0)) == [Cancel(3)]
