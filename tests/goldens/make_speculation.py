"""Make speculation.json with transformers 4.55.4 (see make.py): greedy assisted and prompt-lookup generation.

    golden/bin/python -m tests.goldens.make_speculation

The prompts are those of tiny_greedy.json. The first token of its plain run is put behind each, because this server
draws it before it speculates; so the rounds of both can be compared. A round is [tokens drafted, tokens matched].
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.generation import candidate_generator as hf

from tests.goldens.make import HERE, MIN_GAP, write
from tests.goldens.tiny import TinySpec, build, perturbed

NUM_PROMPTS = 6
DRAFT_NOISE = 24
NUM_TOKENS = 5
ASSISTED: tuple[dict[str, Any], ...] = (
    {"schedule": "constant", "confidence_threshold": 0.0},
    {"schedule": "heuristic", "confidence_threshold": 0.0},
    {"schedule": "constant", "confidence_threshold": 0.4},
)
LOOKUP: tuple[dict[str, Any], ...] = ({"num_tokens": 10, "max_ngram": 2}, {"num_tokens": 3, "max_ngram": 4})


class Rounds:
    """What a candidate generator proposed and what of it was kept; and how close the assistant came to a tie."""

    def __init__(self, threshold: float = 0.0) -> None:
        self.rounds: list[list[int]] = []
        self.smallest_gap = float("inf")
        self._threshold = threshold

    def proposed(self, input_ids: torch.Tensor, candidates: torch.Tensor, logits: torch.Tensor | None) -> None:
        self.rounds.append([candidates.shape[1] - input_ids.shape[1], 0])
        if logits is not None:
            best = logits[0].topk(2).values
            confidence = logits[0].softmax(-1).amax(-1)
            gaps = (best[:, 0] - best[:, 1], (confidence - self._threshold).abs() * 10)
            self.smallest_gap = min(self.smallest_gap, *(float(gap.min()) for gap in gaps))

    def matched(self, num_matches: Any) -> None:
        self.rounds[-1][1] = int(num_matches)


@contextmanager
def recorded(kind: Any, rounds: Rounds) -> Iterator[None]:
    """While entered, generators of `kind` report to `rounds`."""
    propose, update = kind.get_candidates, kind.update_candidate_strategy

    def get_candidates(self: Any, input_ids: torch.Tensor) -> Any:
        candidates, logits = propose(self, input_ids)
        rounds.proposed(input_ids, candidates, logits)
        return candidates, logits

    def update_candidate_strategy(self: Any, input_ids: torch.Tensor, scores: Any, num_matches: Any) -> None:
        rounds.matched(num_matches)
        update(self, input_ids, scores, num_matches)

    kind.get_candidates, kind.update_candidate_strategy = get_candidates, update_candidate_strategy
    try:
        yield
    finally:
        kind.get_candidates, kind.update_candidate_strategy = propose, update


def generate(model: Any, prompt_ids: list[int], eos_ids: list[int], penalty: float, **options: Any) -> list[int]:
    input_ids = torch.tensor([prompt_ids])  # [1, T]
    out = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        eos_token_id=eos_ids,
        pad_token_id=eos_ids[0],
        repetition_penalty=penalty,
        **options,
    )
    ids: list[int] = out[0, len(prompt_ids) :].tolist()
    return ids


def assisted(model: Any, draft: Any, variant: dict[str, Any], *where: Any, **options: Any) -> tuple[list[int], Rounds]:
    config = draft.generation_config
    config.num_assistant_tokens = NUM_TOKENS
    config.num_assistant_tokens_schedule = variant["schedule"]
    config.assistant_confidence_threshold = variant["confidence_threshold"]
    rounds = Rounds(variant["confidence_threshold"])
    with recorded(hf.AssistedCandidateGenerator, rounds):
        return generate(model, *where, assistant_model=draft, **options), rounds


def looked_up(model: Any, variant: dict[str, Any], *where: Any, **options: Any) -> tuple[list[int], Rounds]:
    rounds = Rounds()
    names = {"prompt_lookup_num_tokens": variant["num_tokens"], "max_matching_ngram_size": variant["max_ngram"]}
    with recorded(hf.PromptLookupCandidateGenerator, rounds):
        return generate(model, *where, **names, **options), rounds


def runs_of(model: Any, draft: Any, prompt: dict[str, Any], eos_ids: list[int], limit: int) -> Iterator[dict[str, Any]]:
    """Every variant of speculation on the plain runs without and with a penalty."""
    for plain in prompt["runs"][:2]:
        first, following = plain["token_ids"][0], plain["token_ids"][1:]
        if not following:
            continue
        where = ([*prompt["prompt_token_ids"], first], eos_ids, plain["repetition_penalty"])
        found = [("assisted", v, assisted(model, draft, v, *where, max_new_tokens=limit - 1)) for v in ASSISTED]
        found += [("prompt_lookup", v, looked_up(model, v, *where, max_new_tokens=limit - 1)) for v in LOOKUP]
        for strategy, variant, (ids, rounds) in found:
            assert ids[: limit - 1] == following, "speculation changed the text"  # lookups may overshoot the limit
            if rounds.smallest_gap >= MIN_GAP:
                head = {"strategy": strategy, "params": variant, "repetition_penalty": plain["repetition_penalty"]}
                yield head | {"token_ids": plain["token_ids"], "rounds": rounds.rounds}


def entry_of(entry: dict[str, Any], limit: int) -> dict[str, Any]:
    spec = TinySpec(entry["model_type"], entry["config"], entry["seed"], tuple(entry["eos_token_ids"]))
    model, draft = build(spec), perturbed(build(spec), DRAFT_NOISE)
    prompts = [
        {
            "prompt_token_ids": p["prompt_token_ids"],
            "runs": list(runs_of(model, draft, p, entry["eos_token_ids"], limit)),
        }
        for p in entry["prompts"][:NUM_PROMPTS]
    ]
    for name in ("assisted", "prompt_lookup"):
        rounds = [r for p in prompts for run in p["runs"] if run["strategy"] == name for r in run["rounds"]]
        print(spec.model_type, name, *(sum(r[i] for r in rounds) for i in (0, 1)), len(rounds))
    return {"model_type": spec.model_type, "prompts": prompts}


def main() -> None:
    plain = json.loads((HERE / "tiny_greedy.json").read_text(encoding="utf-8"))
    limit = plain["max_new_tokens"]
    head = {"draft_noise": DRAFT_NOISE, "num_assistant_tokens": NUM_TOKENS, "max_new_tokens": limit}
    write("speculation.json", head, models=[entry_of(entry, limit) for entry in plain["models"]])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
