"""lm-evaluation-harness over the server scores every item as transformers does on the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conformance.clients.environment import run_client
from tests.decoding.rounding_error import SMOLLM2_LOGPROB
from tests.running_server import RunningServer

MODEL = "SmolLM2-135M-Instruct"


def test_log_likelihoods_and_greedy_flags_are_those_of_transformers(
    smol_server: RunningServer, smol_directory: Path, tmp_path: Path
) -> None:
    output = tmp_path / "found.json"
    arguments = (smol_server.url, MODEL, str(smol_directory), str(tmp_path), str(output))
    run_client("lmeval", ["lm-eval[api]>=0.4.9"], "lm_eval_client.py", *arguments)
    found = json.loads(output.read_text())
    assert len(found["scored"]) == 7
    assert {is_greedy for *_, is_greedy in found["scored"]} == {True, False}
    tokenizer = AutoTokenizer.from_pretrained(smol_directory)
    model = AutoModelForCausalLM.from_pretrained(smol_directory, dtype=torch.float32)
    for context, continuation, logprob, is_greedy in found["scored"]:
        expected, is_expected, num_tokens = score(model, tokenizer, context, continuation)
        error = num_tokens * SMOLLM2_LOGPROB
        assert logprob == pytest.approx(expected, abs=error), (context, continuation)
        assert is_greedy is is_expected, (context, continuation)
    for prompt, text in found["said"]:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        said = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert text == tokenizer.decode(said, skip_special_tokens=True).split("\n")[0]


def score(model: torch.nn.Module, tokenizer: object, context: str, continuation: str) -> tuple[float, bool, int]:
    """The log-probs of the continuation's tokens behind the context, whether each is the best, and how many."""
    whole, num_context = tokenizer(context + continuation).input_ids, len(tokenizer(context).input_ids)  # type: ignore[operator]
    with torch.inference_mode():
        logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)  # [T, vocab]
    steps = [(logprobs[i - 1], whole[i]) for i in range(num_context, len(whole))]
    total = sum(float(row[token]) for row, token in steps)
    return total, all(int(row.argmax()) == token for row, token in steps), len(steps)
