from pathlib import Path

import pytest

from loadtest.scenario import find
from loadtest.side import read_sides

FILE = """
["ours int8"]
url = "http://127.0.0.1:8001/v1"
command = "$BIN/polydecode serve --port 8001"

[peer]
url = "http://127.0.0.1:8002"
dialect = "llama-cpp"
model = "m"
ready = "/up"
extra = {seed = 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "contenders.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_servers_are_read_in_the_files_order(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIN", "/opt/bin")
    sides = read_sides(file, [])
    assert list(sides) == ["ours int8", "peer"]
    ours, peer = sides.values()
    assert (ours.target.url, ours.target.dialect.name) == ("http://127.0.0.1:8001", "polydecode")
    assert (ours.command, ours.ready_path) == ("/opt/bin/polydecode serve --port 8001", "/ready")
    assert (peer.command, peer.ready_path, peer.target.model, peer.target.extra) == (None, "/up", "m", {"seed": 1})


def test_only_those_named_need_their_variables(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIN", raising=False)
    assert list(read_sides(file, ["peer"])) == ["peer"]
    with pytest.raises(ValueError, match="ours int8 needs the environment variable BIN"):
        read_sides(file, ["peer", "ours int8"])


def test_a_server_without_beams_cannot_play_them(file: Path) -> None:
    (peer,) = read_sides(file, ["peer"]).values()
    assert peer.can_play(find("streams-16"))
    assert not peer.can_play(find("beams"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\ncommand = 'x'", "missing required field `url`"),
        ("[a]\nurl = 'http://h'\nport = 1", "unknown field `port`"),
        ("[a]\nurl = 'h:1'", "is not an http"),
        ("[a]\nurl = 'http://h'\ndialect = 'klingon'", "no dialect 'klingon'"),
        ("[a", "contenders.toml"),
        ("", "names no server"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises((ValueError, LookupError), match=message):
        read_sides(file, [])


def test_a_name_the_file_lacks_is_refused(file: Path) -> None:
    with pytest.raises(LookupError, match="has no them; it has ours int8, peer"):
        read_sides(file, ["them"])
