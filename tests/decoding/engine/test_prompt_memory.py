"""Scoring a long prompt takes memory by the slice, not by the prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, resource, sys
import torch
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from tests.decoding.engines import make_engine
from decoding.contract.params import LogitsParams, LogprobsParams, Request, StoppingParams
from tests.decoding.drive import run
from tests.decoding.table_model import TableModel

torch.set_num_threads(1)
vocab = 49152
torch.manual_seed(0)
weight = torch.rand(vocab)  # no two scores alike: ties would be sorted

class Wide(TableModel):
    def head(self, hidden):
        return (hidden[:, :1].float() % 97) * weight

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def scored(length):
    model = Wide(num_pages=800)
    engine = make_engine({"main": model}, {"main": PageCache(800, model.attention.page_size)}, eos_token_ids=())
    request = Request(tuple(range(length)), logits=LogitsParams(temperature=0), stopping=StoppingParams(0),
                      logprobs=LogprobsParams(prompt=20))
    (answer,) = run(engine, [request])
    return answer.prompt

with torch.inference_mode():
    scored(200)
    before = peak()
    scores = scored(1500)
    print(json.dumps({"grown": peak() - before, "scores": len(scores.logprobs), "top": len(scores.top[-1])}))
"""


def test_1500_prompt_tokens_with_20_alternatives_take_no_more_than_a_slice() -> None:
    """[1500, 49152] float32 alone would be 281 MiB; a slice of 128 rows is held before and after."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["scores"], found["top"]) == (1500, 20)
    assert found["grown"] < 140, found
