from pathlib import Path

import pytest

from loadtest.options import CompareOptions, RunOptions, TableOptions, parse

RUN = ["run", "single", "--url", "http://h:1/v1"]
COMPARE = ["compare", "single", "streams-16", "--a-url", "http://a", "--b-url", "http://b"]


def run_options(*more: str) -> RunOptions:
    options = parse([*RUN, *more])
    assert isinstance(options, RunOptions)
    return options


def compare_options(*more: str) -> CompareOptions:
    options = parse([*COMPARE, *more])
    assert isinstance(options, CompareOptions)
    return options


def test_a_run_takes_the_scenarios_counts_unless_told() -> None:
    (scenario,) = run_options().common.scenarios
    assert (scenario.name, scenario.requests, scenario.warmup) == ("single", 4, 1)
    (scenario,) = run_options("--requests", "9", "--warmup", "0").common.scenarios
    assert (scenario.requests, scenario.warmup) == (9, 0)


def test_every_run_has_new_prompts_unless_given_a_seed() -> None:
    assert run_options().common.seed != run_options().common.seed
    assert run_options("--seed", "3").common.seed == 3


def test_the_sides_of_a_comparison_are_told_apart() -> None:
    options = compare_options(
        *("--a-model", "m", "--b-dialect", "transformers", "--a-extra", '{"num_beams": 4}', "--b-command", "serve it")
    )
    assert [scenario.name for scenario in options.common.scenarios] == ["single", "streams-16"]
    assert (options.a.target.url, options.a.target.model, options.a.target.extra) == ("http://a", "m", {"num_beams": 4})
    assert (options.b.target.url, options.b.target.model, options.b.target.extra) == ("http://b", None, {})
    assert (options.a.ready_path, options.b.ready_path) == ("/ready", "/health")
    assert (options.a.command, options.b.command) == (None, "serve it")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "nonsense", "--url", "http://h"], "no scenario 'nonsense'"),
        (["run", "single", "--url", "h:1"], "is not an http"),
        ([*RUN, "--extra", "[1]"], "must be a JSON object"),
        ([*RUN, "--extra", "{"], "is not JSON"),
        ([*RUN, "--requests", "0"], "at least 1"),
        (["run", "streams-16", "--url", "http://h", "--requests", "8"], "at least 16 requests"),
    ],
)
def test_what_makes_no_sense_is_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(argv)
    assert message in capsys.readouterr().err


def table_options(file: Path, *more: str) -> TableOptions:
    file.write_text("[a]\nurl = 'http://a'\n[b]\nurl = 'http://b'\n", encoding="utf-8")
    options = parse(["table", *more, "--contenders", str(file)])
    assert isinstance(options, TableOptions)
    return options


def test_a_table_is_of_the_standard_loads_against_the_first_server(tmp_path: Path) -> None:
    options = table_options(tmp_path / "contenders.toml")
    names = [scenario.name for scenario in options.common.scenarios]
    assert names == ["single", "streams-16", "streams-64", "shared-prefix", "prefill", "beams"]
    assert (list(options.sides), options.against, options.rounds) == (["a", "b"], ("a",), 5)


def test_a_table_can_be_of_some_against_some(tmp_path: Path) -> None:
    options = table_options(tmp_path / "contenders.toml", "single", "--only", "b", "a", "--against", "a")
    assert ([s.name for s in options.common.scenarios], list(options.sides)) == (["single"], ["b", "a"])
    assert options.against == ("a",)
    with pytest.raises(SystemExit):
        table_options(tmp_path / "contenders.toml", "--only", "b", "--against", "a")
