"""Make token_steps.json with transformers 4.55.4: every logits processor it has, alone and in generate's order.

    golden/bin/python -m tests.goldens.make_processors

See make.py for the environment. A case is kept only where no rounding and no choice among equals could change which
ids survive: float64, thresholds moved by 1e-4 and a shuffled vocabulary (Hugging Face sorts unstably) must agree.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

from tests.goldens.make import EOS_CHOICES, VOCAB, Dice, encode, logits_rows, write

NUM_CASES = 72
IDS = ("input_ids", "eos_token_ids")


def word(dice: Dice, history: list[int]) -> list[int]:
    """A bad word of one to three ids; every other one is about to be completed."""
    length = dice.integer(1, 3)
    before = history[len(history) - length + 1 :] if dice.of(True, False) else []
    ids = [dice.integer(0, VOCAB - 1) for _ in range(length)]
    return [*before, ids[-1]] if len(before) == length - 1 else ids


def draw_case(dice: Dice) -> dict[str, Any]:
    """Parameters of one case: each step is neutral in half of them."""
    length, generated = dice.integer(1, 5), dice.integer(0, 9)
    history = [dice.integer(0, 5) for _ in range(length + generated)]
    decay = [dice.integer(0, 6), dice.of(1.05, 1.5, 0.7)]
    mass = dice.uniform(0.1, 0.95)
    return {
        "input_ids": history,
        "prompt_length": length,
        "eos_token_ids": dice.of(*EOS_CHOICES),
        "logit_bias": dice.of([], [[dice.integer(0, 24), dice.uniform(-3, 3)], [dice.integer(25, 49), 2.5]]),
        "repetition_penalty": dice.of(1.0, 1.3, 0.8),
        "no_repeat_ngram_size": dice.of(0, 0, 1, 2, 3),
        "bad_words": dice.of([], [word(dice, history) for _ in range(4)]),
        "min_new_tokens": dice.of(0, 0, 12),
        "exponential_decay_length_penalty": dice.of(None, decay),
        "temperature": dice.of(1.0, dice.uniform(0.4, 2.0)),
        "top_k": dice.of(0, 2, dice.integer(10, 40)),
        "top_p": dice.of(1.0, dice.uniform(0.2, 0.98)),
        "min_p": dice.of(0.0, dice.uniform(0.005, 0.3)),
        "typical_p": dice.of(1.0, mass, mass),
        "epsilon_cutoff": dice.of(0.0, dice.uniform(0.003, 0.1)),
        "eta_cutoff": dice.of(0.0, dice.uniform(0.003, 0.3)),
        "min_tokens_to_keep": dice.of(1, 3),
    }


def masks_and_penalties(case: dict[str, Any]) -> dict[str, Any]:
    eos, length = case["eos_token_ids"], case["prompt_length"]
    steps: dict[str, Any] = {}
    if case["logit_bias"]:
        steps["logit_bias"] = hf.SequenceBiasLogitsProcessor({(i,): bias for i, bias in case["logit_bias"]})
    if case["repetition_penalty"] != 1.0:
        steps["repetition_penalty"] = hf.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])
    if case["no_repeat_ngram_size"]:
        steps["no_repeat_ngram_size"] = hf.NoRepeatNGramLogitsProcessor(case["no_repeat_ngram_size"])
    if case["bad_words"]:
        steps["bad_words"] = hf.NoBadWordsLogitsProcessor(case["bad_words"], eos)
    if case["min_new_tokens"]:
        steps["min_new_tokens"] = hf.MinNewTokensLengthLogitsProcessor(length, case["min_new_tokens"], eos)
    if case["exponential_decay_length_penalty"]:
        decay = tuple(case["exponential_decay_length_penalty"])
        steps["exponential_decay_length_penalty"] = hf.ExponentialDecayLengthPenalty(decay, eos, length)
    return steps


def warpers(case: dict[str, Any]) -> dict[str, Any]:
    keep = {"min_tokens_to_keep": case["min_tokens_to_keep"]}
    makers: dict[str, tuple[Any, float]] = {  # name -> (maker, neutral value)
        "temperature": (hf.TemperatureLogitsWarper, 1.0),
        "top_k": (lambda value: hf.TopKLogitsWarper(value, **keep), 0),
        "top_p": (lambda value: hf.TopPLogitsWarper(value, **keep), 1.0),
        "min_p": (lambda value: hf.MinPLogitsWarper(value, **keep), 0.0),
        "typical_p": (lambda value: hf.TypicalLogitsWarper(value, **keep), 1.0),
        "epsilon_cutoff": (lambda value: hf.EpsilonLogitsWarper(value, **keep), 0.0),
        "eta_cutoff": (lambda value: hf.EtaLogitsWarper(value, **keep), 0.0),
    }
    return {name: make(case[name]) for name, (make, neutral) in makers.items() if case[name] != neutral}


def outputs(row: torch.Tensor, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Each processor alone on `row` [V], and all of them in generate's order."""
    history = torch.tensor([case["input_ids"]])
    steps = masks_and_penalties(case) | warpers(case)
    alone = {name: step(history, row.clone()[None])[0] for name, step in steps.items()}
    chain: Any = LogitsProcessorList((masks_and_penalties(case) | warpers(case)).values())
    return alone | {"chain": chain(history, row.clone()[None])[0]}


def shuffled(case: dict[str, Any], place: torch.Tensor) -> dict[str, Any]:
    """The case with id i renamed place[i]."""
    renamed = {name: [int(place[i]) for i in case[name]] for name in IDS}
    bias = [[int(place[i]), value] for i, value in case["logit_bias"]]
    return case | renamed | {"logit_bias": bias, "bad_words": [[int(place[i]) for i in w] for w in case["bad_words"]]}


def support(row: torch.Tensor, case: dict[str, Any]) -> dict[str, list[bool]]:
    return {name: out.isfinite().tolist() for name, out in outputs(row, case).items()}


def is_robust(row: torch.Tensor, case: dict[str, Any], generator: torch.Generator) -> bool:
    variants = [case]
    for name in ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
        if 0.0 < case[name] < 1.0:
            variants += [case | {name: case[name] + step} for step in (1e-4, -1e-4)]
    expected = support(row, case)
    for _ in range(4):
        order = torch.randperm(VOCAB, generator=generator)
        moved = outputs(row[order], shuffled(case, order.argsort()))
        if {name: out[order.argsort()].isfinite().tolist() for name, out in moved.items()} != expected:
            return False
    return all(support(row.double(), variant) == expected for variant in variants)


def is_defined(row: torch.Tensor, case: dict[str, Any]) -> bool:
    """Nothing became NaN (as where the decay meets an excluded EOS), and something is left."""
    return all(not out.isnan().any() and bool(out.isfinite().any()) for out in outputs(row, case).values())


def make() -> None:
    rows = list(logits_rows(torch.Generator().manual_seed(11)))
    dice, generator = Dice(13), torch.Generator().manual_seed(14)
    cases: list[dict[str, Any]] = []
    while len(cases) < NUM_CASES:
        index = len(cases) % len(rows)
        case = {"row": index} | draw_case(dice)
        if is_defined(rows[index], case) and is_robust(rows[index], case, generator):
            cases.append(case | {"outputs": {name: encode(out) for name, out in outputs(rows[index], case).items()}})
    head = {"vocab_size": VOCAB, "minus_infinity": None, "order": "as listed in outputs; neutral ones are absent"}
    write("token_steps.json", head, rows=[encode(row) for row in rows], cases=cases)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)  # let eta see NaN: such cases are dropped later
    make()
