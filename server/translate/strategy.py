"""The positions that a strategy needs beside prompt and answer."""

from __future__ import annotations

from decoding.contract.params import CotDecoding, Guided, KlGuided, Sed, StrategyParams


def num_beside(strategy: StrategyParams) -> int:
    """Positions that a row needs beside prompt and answer."""
    if isinstance(strategy, CotDecoding) and strategy.suffix_ids:
        return len(strategy.suffix_ids) + strategy.max_answer
    return len(strategy.eval_ids) if isinstance(strategy, Sed) else 0


def num_second_context(strategy: StrategyParams) -> int:
    """Length of what a second row opens with, to which the answer is added as to the first."""
    if isinstance(strategy, Guided):
        return len(strategy.negative_ids)
    if isinstance(strategy, Sed):
        return len(strategy.eval_before)
    return len(strategy.context_ids) if isinstance(strategy, KlGuided) else 0
