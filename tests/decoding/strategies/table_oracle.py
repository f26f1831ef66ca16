"""The table model's next-token log-probs by themselves, for references that no engine runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tests.decoding.table_model import TableModel


def table_logprobs(ids: Sequence[int], model: TableModel | None = None) -> np.ndarray:
    """log p(v | ids), float32 [vocab]."""
    model = model or TableModel()
    hashed = torch.tensor([[model._hash(np.asarray(ids, dtype=np.int64))]], dtype=torch.float64)
    logprobs: np.ndarray = model.head(hashed).log_softmax(-1)[0].numpy()
    return logprobs
