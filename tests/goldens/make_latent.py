"""Records latent.json: latent thoughts (Coconut, arXiv 2412.06769) as a plain loop over whole forwards.

    golden/bin/python -m tests.goldens.make_latent

from the repository root, in the environment that make.py describes. As in the authors' loop the input at a thought is
the last hidden state, behind the final norm, of the position before it; thoughts are found one after the other,
positions count them, and the answer is greedy. Nothing is cached here: every step runs all embeddings again.
Paths on which two best tokens come closer than MIN_GAP are dropped.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.goldens.make import GPT2_SHAPE, LLAMA_SHAPE, MIN_GAP, finish_reason, smallest_gap, write
from tests.goldens.tiny import TinySpec, build, weights_sha256

NEW_TOKENS = 16
NUM_PROMPTS = 4
COUNTS = (1, 3, 6, 20)
START_ID, END_ID = 90, 91
SPECS = (
    TinySpec("gpt2", GPT2_SHAPE, seed=31, eos_token_ids=(2, 40, 77)),
    TinySpec("llama", LLAMA_SHAPE, seed=32, eos_token_ids=(2,)),
)


@torch.no_grad()
def thought(model: Any, prompt: list[int], count: int) -> torch.Tensor:
    """Embeddings of the prompt, <start>, the thoughts and <end>: [1, T, hidden]."""
    embed = model.get_input_embeddings()
    inputs = embed(torch.tensor([[*prompt, START_ID]]))
    for _ in range(count):
        hidden = model(inputs_embeds=inputs, output_hidden_states=True).hidden_states[-1]
        inputs = torch.cat([inputs, hidden[:, -1:]], dim=1)
    return torch.cat([inputs, embed(torch.tensor([[END_ID]]))], dim=1)


@torch.no_grad()
def run(model: Any, spec: TinySpec, prompt: list[int], count: int) -> dict[str, Any]:
    inputs = thought(model, prompt, count)
    ids: list[int] = []
    scores: list[torch.Tensor] = []
    while len(ids) < NEW_TOKENS and not set(ids) & set(spec.eos_token_ids):
        scores.append(model(inputs_embeds=inputs).logits[:, -1])
        ids.append(int(scores[-1].argmax()))
        inputs = torch.cat([inputs, model.get_input_embeddings()(torch.tensor([[ids[-1]]]))], dim=1)
    gap = round(smallest_gap(scores), 6)
    return {"count": count, "token_ids": ids, "finish_reason": finish_reason(ids, spec.eos_token_ids), "min_gap": gap}


def runs(model: Any, spec: TinySpec, count: int) -> list[dict[str, Any]]:
    """Unambiguous ones over random prompts of 3 to 30 ids without EOS, <start> and <end>."""
    generator = torch.Generator().manual_seed(count)
    found: list[dict[str, Any]] = []
    while len(found) < NUM_PROMPTS:
        prompt = torch.randint(0, 90, (3 + 9 * len(found),), generator=generator).tolist()
        if set(prompt) & set(spec.eos_token_ids):
            continue
        made = run(model, spec, prompt, count)
        if made["min_gap"] >= MIN_GAP:
            found.append({"prompt_token_ids": prompt} | made)
    return found


def model_entry(spec: TinySpec) -> dict[str, Any]:
    model = build(spec)
    return {
        "model_type": spec.model_type,
        "config": spec.config,
        "seed": spec.seed,
        "eos_token_ids": spec.eos_token_ids,
        "weights_sha256": weights_sha256(model),
        "runs": [each for count in COUNTS for each in runs(model, spec, count)],
    }


def main() -> None:
    head = {"max_new_tokens": NEW_TOKENS, "start_id": START_ID, "end_id": END_ID}
    write("latent.json", head, models=(model_entry(spec) for spec in SPECS))


if __name__ == "__main__":
    main()
