"""What plugins are written with: the half that both processes read, free of torch. `docs/plugin/README.md` shows how.

The other half, for the methods that decode, is `words.py`. These names stay; where they come from may change.
"""

from decoding.contract.asking import GREEDY_KEYS, Exclusion, Strategy
from decoding.contract.params import DRAFT, MAIN, Request
from decoding.contract.params.base import Choices
from decoding.contract.params.declared import MAX_INT, FromText, Named, Off, Says, TokenId, Within
from decoding.contract.params.invalid import InvalidParam, check
from decoding.contract.params.plugin import PluginStep, PluginStrategy
from decoding.contract.plugins import Candidate, Judge, Plugin

__all__ = [
    "DRAFT", "GREEDY_KEYS", "MAIN", "MAX_INT", "Candidate", "Choices", "Exclusion", "FromText", "InvalidParam", "Judge",
    "Named", "Off", "Plugin", "PluginStep", "PluginStrategy", "Request", "Says", "Strategy", "TokenId", "Within",
    "check",
]  # fmt: skip
