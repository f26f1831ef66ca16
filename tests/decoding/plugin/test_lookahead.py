"""The example that docs/plugin begins with does what the one in decoding/strategies/README.md does."""

from __future__ import annotations

import pytest

from tests.decoding.drive import run
from tests.decoding.plugin.world import EXAMPLES, ask, builder, engine, params
from tests.test_strategies_readme import PROMPT, look_ahead


@pytest.mark.parametrize("k", [1, 3, 6])
def test_it_equals_its_definition(k: int) -> None:
    (answer,) = run(engine(), [ask(params("lookahead", k=k), temperature=0, prompt=PROMPT)], builder())
    assert answer.tokens() == look_ahead(k)


def test_it_is_one_page() -> None:
    assert len((EXAMPLES / "lookahead.py").read_text(encoding="utf-8").splitlines()) <= 60
