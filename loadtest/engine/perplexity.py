"""How well a model predicts a fixed text: what rounded weights cost, measured over the engine's own forward.

`python -m loadtest.engine.perplexity DIR TEXT [--quantize int8|int4]` prints e^(mean negative log-likelihood of each
token but the first, given all before it). One forward takes CHUNK tokens, as a prefill does.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from transformers import AutoTokenizer

from decoding.attention.interface import Batch
from decoding.contract.quantize import Quantize
from decoding.model.loading import load
from decoding.model.model import Model
from decoding.model.quantize import CAPABILITIES

CHUNK = 256


def perplexity(model: Model, ids: np.ndarray) -> float:  # int64 [T], T >= 2
    """Of one sequence; takes the model's pages for itself."""
    page_size = model.attention.page_size
    model.attention.allocate(2 + len(ids) // page_size)
    losses = torch.cat([_losses(model, ids, start) for start in range(0, len(ids) - 1, CHUNK)])
    return math.exp(float(losses.double().mean()))


def _losses(model: Model, ids: np.ndarray, start: int) -> torch.Tensor:  # [tokens]
    """Of the tokens that follow ids[start : start + CHUNK]."""
    end = min(start + CHUNK, len(ids) - 1)
    batch = Batch.of_one_row(ids[start:end], model.attention.page_size, start=start)
    logprobs = model.head(model.forward(batch).last).log_softmax(-1)
    following = torch.from_numpy(ids[start + 1 : end + 1]).to(logprobs.device)
    return -logprobs.gather(1, following[:, None])[:, 0]


def ids_of(directory: str, text: Path) -> np.ndarray:  # int64 [T]
    """The file's text in the model's own tokens."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return np.array(tokenizer.encode(text.read_text(encoding="utf-8")), np.int64)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine.perplexity")
    parser.add_argument("directory", metavar="DIR", help="a local Hugging Face model")
    parser.add_argument("text", metavar="TEXT", type=Path)
    parser.add_argument("--quantize", choices=get_args(Quantize), default="none")
    options = parser.parse_args(arguments)
    ids = ids_of(options.directory, options.text)
    model = load(
        options.directory,
        device="auto" if options.quantize in CAPABILITIES else "cpu",
        dtype="float32" if options.quantize == "none" else "auto",
        quantize=options.quantize,
    )
    print(f"{options.quantize}: perplexity {perplexity(model, ids):.4f} over {len(ids)} tokens")


if __name__ == "__main__":
    main()
