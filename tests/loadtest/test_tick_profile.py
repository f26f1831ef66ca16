"""The profile of a tick runs to its end with a tiny model, and its parts are parts of the whole."""

from __future__ import annotations

from pathlib import Path

from loadtest.engine.tick_profile import main
from tests.decoding.tiny import tiny


def test_the_phases_of_a_tick_add_up_to_no_more_than_the_whole(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    shown: list[str] = []
    flags = ["--device", "cpu", "--rows", "1", "3", "--prompt", "9", "--new", "12"]
    assert main([str(tmp_path), *flags], shown.append) == 0
    header, _, *lines = shown[-1].splitlines()
    assert [part.strip() for part in header.split("|")[3:6]] == ["whole tick", "pack", "layers"]
    for line, rows in zip(lines, ("1", "3"), strict=True):
        form, count, whole, *parts = (part.strip() for part in line.strip("|").split("|"))
        assert (form, count) == ("`none`", rows)
        *phases, rest = map(float, parts)
        assert all(phase >= 0 for phase in phases)
        assert phases[1] > 0
        assert abs(sum(phases) + rest - float(whole)) < 0.05
