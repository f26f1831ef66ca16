"""The README's tables of strategies and steps are those of the code.

`python -m tests.server.translate.test_strategy_table` prints them as they must stand there.
"""

from __future__ import annotations

from pathlib import Path

from server.translate.catalogue import properties
from server.translate.table import STEPS, STRATEGIES, Step, Strategy

README = Path(__file__).parents[3] / "README.md"


def strategy_row(strategy: Strategy) -> str:
    asked = " + ".join(f"`{key.replace('=', ': ')}`" for key in strategy.when) or "nothing"
    told = {key.partition("=")[0] for key in strategy.when}
    others = ", ".join(f"`{name}`" for name in (*inner(strategy), *strategy.own_fields) if name not in told)
    return f"| {strategy.name} | {strategy.purpose} | {asked} | {others} | {strategy.paper} |"


def inner(strategy: Strategy) -> list[str]:
    """The fields of the object that holds its parameters."""
    within = strategy.params.WITHIN
    options = properties()[within]["anyOf"] if within else []
    return [name for option in options for name in option.get("properties", ())]


def step_row(step: Step) -> str:
    return f"| {', '.join(f'`{key}`' for key in step.keys)} | {step.purpose} | {step.paper} |"


def strategies() -> str:
    head = ["| strategy | what it is for | asked for by | further parameters | paper |", "|---|---|---|---|---|"]
    return "\n".join([*head, *map(strategy_row, STRATEGIES)])


def steps() -> str:
    head = ["| parameters | what they are for | paper |", "|---|---|---|"]
    return "\n".join([*head, *map(step_row, STEPS)])


def test_the_readme_s_tables_are_those_of_the_code() -> None:
    text = README.read_text(encoding="utf-8")
    assert strategies() in text, "run: python -m tests.server.translate.test_strategy_table"
    assert steps() in text, "run: python -m tests.server.translate.test_strategy_table"


if __name__ == "__main__":
    print(strategies(), steps(), sep="\n\n")
