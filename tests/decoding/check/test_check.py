"""What `polydecode check` finds: plugins that are broken on purpose, each with the step in which it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from decoding.check.__main__ import main

PLUGIN = """
import random
import time
from dataclasses import dataclass
from typing import Annotated

from decoding.plugin import Plugin, PluginStep, PluginStrategy, Says, Strategy, Within

COUNT = 0


@dataclass(frozen=True, slots=True)
class Broken(PluginStrategy):
    NAME = WITHIN = "broken"

    k: Annotated[int, Within(2, 5), Says("Candidates.")] = 3

    @property
    def max_rows(self):
        return 2

    def decode(self, request, stopping, tools):
        from decoding.plugin.words import Choice, Draw, Feed, Move, Report, open_prompt, prompt_scores

        global COUNT
        COUNT += 1
        number = COUNT
        report = Report(request)
        choice, want = Choice(report, stopping), report.want(top_k=self.k)
        seen = yield Move((open_prompt(request, want), open_prompt(request, want)))
        prompt, twin, step = prompt_scores(request, seen.rows[0].readings), seen.rows[1].row, 0  # the twin is let go
        while True:
            view, parent, at, step = seen.rows[0], seen.rows[0].row, 0, step + 1
            if step == 3:
                {code}
            tokens = report.candidates(view.last, self.k)
            choice.push(tokens[at][0])
            feeds = () if choice.is_over else (Feed(parent, (choice_id(choice),), want=want),)
            seen = yield Move(feeds, emit=(choice.emit(),), prompt=prompt)
            prompt = None


def choice_id(choice):
    return choice._tokens[-1].id


PLUGIN = Plugin("broken", "1", strategies=(
    Strategy("broken", Broken, "Broken on purpose.", "", when=("broken",), draws=False),
))
"""

BROKEN = {
    "a clock": ("at = int(time.time()) % 2", "later", 3, "it reads a clock"),
    "a clock by the second": ("at = time.monotonic_ns() // 10**6 % 2", "later", 3, "it reads a clock"),
    "a global counter": ("at = number % 2", "twice", 3, "it keeps something from one request to the next"),
    "an unkeyed random number": ("at = random.random() < 0.5", "reseeded", 3, "random numbers that the request's seed"),
    "a row that is gone": ("parent = twin", "alone", 3, "a row that is gone"),
    "a field that no Want asked for": ("at = view.last.entropy is None", "alone", 3, "Reading.entropy"),
    "an exception": ("raise KeyError('on purpose')", "alone", 3, "KeyError: 'on purpose'"),
    "another request's token": (
        "at = COUNT - number if COUNT - number < 2 else 1", "mixed", 3, "it depends on the requests beside it",
    ),
}  # fmt: skip


def check(path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    file = path / "broken.py"
    file.write_text(source)
    return main([str(file)]), capsys.readouterr().out


def test_what_is_whole_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = check(tmp_path, PLUGIN.format(code="pass"), capsys)
    assert (status, "FAILED" in out) == (0, False), out
    assert re.search(r"preempted +the same \([1-9]\d* times\)", out)
    assert re.search(r"too few pages +the same \([1-9]\d* preemptions\)", out)
    assert re.search(r"cached prefix +the same \([1-9]\d* tokens were cached\)", out)


@pytest.mark.parametrize("what", BROKEN)
def test_the_step_that_breaks_it_is_named(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, condition, step, why = BROKEN[what]
    status, out = check(tmp_path, PLUGIN.format(code=code), capsys)
    (found,) = re.findall(r"^    (.*?) +FAILED in step (\d+): (.*)$", out, re.MULTILINE)
    assert (status, found[0], int(found[1])) == (1, condition, step), out
    assert why in found[2]


STEP = """
from dataclasses import dataclass
from typing import Annotated

from decoding.plugin import Plugin, PluginStep, Says, Within


class Nearer:
    def __init__(self, share):
        self.share = share

    @staticmethod
    def apply(scores, steps, context):
        from decoding.plugin.words import column

        shares = {shares}
        return scores + (scores[:, :1] - scores) * shares


@dataclass(frozen=True, slots=True)
class Level(PluginStep):
    NAME, KIND, PURPOSE = "level", "penalty", "Nears all scores to one."

    share: Annotated[float, Within(0, 1), Says("How near.")] = 0.5

    def step(self, eos_token_ids, token_bytes):
        return Nearer(self.share)


PLUGIN = Plugin("level", "1", steps=(Level,))
"""


def test_a_step_that_looks_at_other_rows_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, STEP.format(shares="column([step.share for step in steps], scores)"), capsys)[0] == 0
    status, out = check(tmp_path, STEP.format(shares="steps[0].share"), capsys)
    assert status == 1
    assert re.search(r"mixed +FAILED in step \d+: .*: its numbers depend on the other rows of the batch", out), out


def test_what_cannot_be_loaded_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing.py")]) == 2
    assert "missing.py: FileNotFoundError" in capsys.readouterr().err
