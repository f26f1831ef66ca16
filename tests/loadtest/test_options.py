import pytest

from loadtest.options import CompareOptions, RunOptions, parse

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
