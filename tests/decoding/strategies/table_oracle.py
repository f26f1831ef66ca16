"""The table model's next-token log-probs by themselves, for references that no engine runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from tests.decoding.rounding_error import of_log_softmax
from tests.decoding.table_model import TableModel

LARGEST = 10.0
"""The table model's scores are from 0 to this."""


def logprob_error(largest: float = LARGEST, vocab: int = 40) -> float:
    """How far two float32 log-softmaxes of scores from 0 to `largest` may be apart: both are rounded. A search adds
    log-probs up in float64, so those of n are as far apart as n of them.
    """
    return 2 * of_log_softmax(largest + math.log(vocab), vocab)


def table_logprobs(ids: Sequence[int], model: TableModel | None = None) -> np.ndarray:
    """log p(v | ids), float32 [vocab]."""
    model = model or TableModel()
    hashed = torch.tensor([[model._hash(np.asarray(ids, dtype=np.int64))]], dtype=torch.float64)
    logprobs: np.ndarray = model.head(hashed).log_softmax(-1)[0].numpy()
    return logprobs
