"""Make `branches.json`: CoT-decoding and SED by slow loops over plain `generate` of transformers 4.55.4.

    golden/bin/python -m tests.goldens.make_branches

Run from the repository root in the environment that `make.py` describes. Every stage (a branch, a rollout, a
question) is a `generate` of its own at batch 1, greedy, from the whole sequence so far. Nothing of `decoding/` is
used: answers are found with Python's `re`. A case is dropped when any choice on its way was closer than MIN_GAP.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any

import torch

from tests.goldens.make import MIN_GAP, TINY_SPECS, greedy, write
from tests.goldens.tiny import TinySpec, build, weights_sha256

ALPHABET = "0123456789.,$- abcdefghijklmnopqrstuvwxyz\n"
VOCAB = 96
MAX_TOKENS = 16
NUM_CASES = 4
MIN_DISTANCE = 2e-4
"""Between probabilities, and means and sums of them; MIN_GAP is between logits."""

COT_VARIANTS: tuple[dict[str, Any], ...] = (
    {"k": 8},
    {"k": 6, "aggregate": False},
    {"k": 4, "span": "all"},
    {"k": 5, "branch_at": 3},
    {"k": 5, "answer_regex": "([a-e])[^a-e]*$"},
    {"k": 5, "suffix_ids": [50, 51, 52], "max_answer": 5},
    {"k": 8, "suffix_ids": [50], "max_answer": 3, "answer_regex": "[a-m]"},
    {"k": 5, "repetition_penalty": 1.3},
)
SED_VARIANTS: tuple[dict[str, Any], ...] = (
    {"k": 3, "max_rollout": 6, "alpha": 0.5, "max_points": 8},
    {"k": 4, "delta_ratio": 0.3, "min_probability": 0.0, "max_rollout": 3, "alpha": 1.0},
    {"k": 3, "delta_entropy": 2.5, "max_rollout": 8, "alpha": 0.5, "max_points": 3},
    {"k": 2, "delta_ratio": 0.2, "max_rollout": 40, "alpha": 0.8, "max_points": 6, "eval_before": [80, 81, 82]},
)
NUMBER = r"-?\$?\d+(?:,\d{3})*(?:\.\d+)?"
EVAL_IDS = [60, 61, 62, 63]
YES_ID, NO_ID = 70, 71


def token_text(token_id: int) -> str:
    """One or two characters a token, so that numbers and words are cut in the middle."""
    first = ALPHABET[token_id % len(ALPHABET)]
    return first if token_id < 60 else first + ALPHABET[token_id * 7 % 10]


class TooClose(Exception):
    """Another order of summation could have chosen otherwise."""


def apart(a: float, b: float, distance: float = MIN_DISTANCE) -> None:
    if abs(a - b) < distance:
        raise TooClose


@dataclass
class Path:
    """New ids, and for each the logits [V] it was chosen from: raw, and after the processors."""

    ids: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)

    def __add__(self, other: Path) -> Path:
        return Path(self.ids + other.ids, self.logits + other.logits, self.scores + other.scores)

    def cut(self, length: int) -> Path:
        return Path(self.ids[:length], self.logits[:length], self.scores[:length])


@dataclass
class World:
    """A model, its EOS ids, and the penalty that every generate applies."""

    model: Any
    eos_ids: list[int]
    penalty: float = 1.0

    def generate(self, ids: list[int], max_new_tokens: int) -> Path:
        if max_new_tokens < 1:
            return Path()
        options = {"max_new_tokens": max_new_tokens, "repetition_penalty": self.penalty}
        new, out = greedy(self.model, ids, self.eos_ids, **options)
        for score in out.scores:
            apart(*score[0].topk(2).values.tolist(), MIN_GAP)
        return Path(new, [x[0] for x in out.logits], [x[0] for x in out.scores])

    def best(self, path: Path, at: int, k: int) -> list[tuple[int, float]]:
        """The k likeliest after the processors and their probabilities."""
        p, ids = path.scores[at].softmax(-1).topk(k + 1)
        for a, b in pairwise(path.scores[at][ids].tolist()):
            apart(a, b, MIN_GAP)
        return list(zip(ids[:k].tolist(), p[:k].tolist(), strict=True))

    def is_over(self, path: Path) -> bool:
        return bool(path.ids) and path.ids[-1] in self.eos_ids

    def text_ids(self, path: Path) -> list[int]:
        return path.ids[:-1] if self.is_over(path) else path.ids


def gaps(path: Path) -> list[float]:
    tops = [z.softmax(-1).topk(2).values for z in path.logits]
    return [float(top[0] - top[1]) for top in tops]


# CoT-decoding


def last_match(regex: str, ids: list[int]) -> tuple[str, list[int]] | None:
    """The last match (its first group if any) and the indices of the tokens that overlap it."""
    text = "".join(map(token_text, ids))
    found = list(re.finditer(regex, text))
    if not found:
        return None
    start, end = found[-1].span(1 if found[-1].re.groups else 0)
    owners = [i for i, token_id in enumerate(ids) for _ in token_text(token_id)]
    return text[start:end], sorted(set(owners[start:end]))


def canonical(answer: str) -> str:
    bare = answer.replace(",", "").replace("$", "").strip()
    if re.fullmatch(r"-?\d+(\.\d+)?", bare):
        number = Decimal(bare)
        return f"{number.normalize():f}" if number else "0"
    return " ".join(answer.split()).lower()


def said(world: World, prompt: list[int], path: Path, variant: dict[str, Any]) -> tuple[str, list[float]] | None:
    """What follows the suffix, up to the first line break: its last number, else all of it, unless there is a regex.

    The gaps are those of the tokens of the path that say it last, as a word of its own; else those behind the suffix.
    """
    answer = world.generate(prompt + world.text_ids(path) + variant["suffix_ids"], variant["max_answer"])
    ids = world.text_ids(answer)
    breaks = [i for i, token_id in enumerate(ids) if "\n" in token_text(token_id)]
    ids = ids[: breaks[0] + 1] if breaks else ids
    line = "".join(map(token_text, ids)).split("\n")[0]
    whole = re.search(r"\S(.*\S)?", line)
    if whole is None:
        return None
    found = list(re.finditer(variant.get("answer_regex", NUMBER), line))
    if not found and "answer_regex" in variant:
        return None
    match = found[-1] if found else whole
    first = r"(?<![0-9A-Za-z])" if match[0][0].isalnum() else ""
    last = r"(?![0-9A-Za-z])" if match[0][-1].isalnum() else ""
    place = last_match(first + re.escape(match[0]) + last, world.text_ids(path))
    if place is not None:
        return match[0], [gaps(path)[i] for i in place[1]]
    owners = [i for i, token_id in enumerate(ids) for _ in token_text(token_id)]
    return match[0], [gaps(answer)[i] for i in sorted(set(owners[match.start() : match.end()]))]


def branch_answer(
    world: World, prompt: list[int], path: Path, variant: dict[str, Any]
) -> tuple[str, list[float]] | None:
    if "suffix_ids" in variant:
        return said(world, prompt, path, variant)
    regex = variant.get("answer_regex", NUMBER)
    found = last_match(regex, world.text_ids(path))
    return None if found is None else (found[0], [gaps(path)[i] for i in found[1]])


def cot_branches(world: World, prompt: list[int], variant: dict[str, Any]) -> list[dict[str, Any]]:
    at = variant.get("branch_at", 0)
    head = world.generate(prompt, at + 1)
    if len(head.ids) <= at:
        raise TooClose  # the text ended before the crossing: not what is tested here
    branches = []
    for token_id, _ in world.best(head, at, variant["k"]):
        path = head.cut(at) + Path([token_id], [head.logits[at]], [head.scores[at]])
        if token_id not in world.eos_ids:
            path += world.generate(prompt + path.ids, MAX_TOKENS - at - 1)
        found = branch_answer(world, prompt, path, variant)
        answer = None if found is None else canonical(found[0])
        over = gaps(path) if found is None or variant.get("span") == "all" else found[1]
        branches.append({"token_ids": path.ids, "answer": answer, "delta": sum(over) / len(over)})
    return branches


def cot_ranking(branches: list[dict[str, Any]], variant: dict[str, Any]) -> list[int]:
    """Indices of the branches that take part, best first: one of each answer first."""
    has_answers = any(b["answer"] is not None for b in branches) and variant.get("span") != "all"
    voters = [i for i, b in enumerate(branches) if b["answer"] is not None or not has_answers]
    sure = sorted(voters, key=lambda i: -branches[i]["delta"])
    for a, b in pairwise(sure):
        apart(branches[a]["delta"], branches[b]["delta"])
    if not variant.get("aggregate", True):
        return sure
    groups: dict[Any, list[int]] = {}
    for i in sure:
        groups.setdefault(branches[i]["answer"] if branches[i]["answer"] is not None else i, []).append(i)
    totals = {group: sum(branches[i]["delta"] for i in members) for group, members in groups.items()}
    ordered = sorted(groups, key=lambda group: -totals[group])
    for a, b in pairwise(ordered):
        apart(totals[a], totals[b])
    return [groups[g][depth] for depth in range(len(voters)) for g in ordered if depth < len(groups[g])]


def cot_case(world: World, prompt: list[int], variant: dict[str, Any]) -> dict[str, Any]:
    world.penalty = variant.get("repetition_penalty", 1.0)
    branches = cot_branches(world, prompt, variant)
    return {"prompt_token_ids": prompt, "branches": branches, "ranking": cot_ranking(branches, variant)}


# SED


def is_chaotic(world: World, path: Path, at: int, variant: dict[str, Any]) -> bool:
    """The entropy is in bits and takes the place of the two rules about p1 and p2."""
    (_, p1), (_, p2) = world.best(path, at, 2)
    logp = path.logits[at].double().log_softmax(-1)
    entropy = float(-(logp.exp() * logp).sum()) / math.log(2)
    if (limit := variant.get("delta_entropy")) is not None:
        apart(entropy, limit)
        return entropy > limit
    ratio, least = variant.get("delta_ratio", 0.5), variant.get("min_probability", 0.2)
    apart(p2, p1 * ratio)
    apart(p1, least)
    return p2 > p1 * ratio or p1 < least


def p_yes(world: World, ids: list[int]) -> float:
    """P(yes) after the question, read off a generate of one token without penalty."""
    _, out = greedy(world.model, ids + EVAL_IDS, world.eos_ids, max_new_tokens=1)
    return float(out.logits[0][0].softmax(-1)[YES_ID])


def sed_point(world: World, prompt: list[int], ids: list[int], path: Path, variant: dict[str, Any]) -> dict[str, Any]:
    """chosen: None where no candidate is judged good at all; `token_id` is what is taken."""
    tried = []
    *best, (other, _) = world.best(path, 0, variant["k"] + 1)
    room = MAX_TOKENS - len(ids)
    for token_id, p_gen in best:
        rollout = Path([token_id])
        if token_id not in world.eos_ids:
            rollout += world.generate([*prompt, *ids, token_id], min(variant["max_rollout"], room - 1))
        p_se = p_yes(world, variant.get("eval_before", prompt) + ids + world.text_ids(rollout))
        score = variant["alpha"] * p_se + (1 - variant["alpha"]) * p_gen
        tried.append({"token_ids": rollout.ids, "p_se": p_se, "p_gen": p_gen, "score": score})
    ranked = sorted((t["score"] for t in tried), reverse=True)
    apart(ranked[0], ranked[1])
    best_judged = max(t["p_se"] for t in tried)
    apart(best_judged, 1e-3, 1e-5)
    if best_judged < 1e-3:
        return {"candidates": tried, "chosen": None, "token_id": other}
    chosen = max(range(len(tried)), key=lambda i: tried[i]["score"])
    return {"candidates": tried, "chosen": chosen, "token_id": tried[chosen]["token_ids"][0]}


def sed_case(world: World, prompt: list[int], variant: dict[str, Any]) -> dict[str, Any]:
    """Token by token, each from a generate of its own over the whole text so far: nothing of a rollout is kept."""
    world.penalty = 1.0
    ids: list[int] = []
    points: list[dict[str, Any]] = []
    while len(ids) < MAX_TOKENS and not (ids and ids[-1] in world.eos_ids):
        path = world.generate(prompt + ids, 1)
        if len(points) < variant.get("max_points", 5) and is_chaotic(world, path, 0, variant):
            point = sed_point(world, prompt, ids, path, variant)
            points.append({"at": len(ids)} | point)
            ids.append(point["token_id"])
        else:
            ids.append(path.ids[0])
    return {"prompt_token_ids": prompt, "token_ids": ids, "points": points}


# the file


def cases(world: World, variant: dict[str, Any], make: Any, generator: torch.Generator) -> list[dict[str, Any]]:
    """NUM_CASES unambiguous cases over random prompts without EOS."""
    made: list[dict[str, Any]] = []
    num_dropped = 0
    while len(made) < NUM_CASES:
        length = 1 + 13 * len(made) % 40
        prompt = torch.randint(0, VOCAB, (length,), generator=generator).tolist()
        if set(prompt) & set(world.eos_ids):
            continue
        try:
            made.append(make(world, prompt, variant))
        except TooClose:
            num_dropped += 1
    print(f"{variant}: {num_dropped} dropped", flush=True)
    return made


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def entry(spec: TinySpec, variants: tuple[dict[str, Any], ...], make: Any) -> dict[str, Any]:
    model = build(spec)
    world = World(model, list(spec.eos_token_ids))
    generator = torch.Generator().manual_seed(100 + spec.seed)
    runs = [{"params": variant, "cases": cases(world, variant, make, generator)} for variant in variants]
    print(f"{spec.model_type}: {make.__name__} done", flush=True)
    return {
        "model_type": spec.model_type,
        "config": spec.config,
        "seed": spec.seed,
        "eos_token_ids": spec.eos_token_ids,
        "weights_sha256": weights_sha256(model),
        "runs": rounded(runs),
    }


def main() -> None:
    torch.set_num_threads(1)
    head = {
        "max_new_tokens": MAX_TOKENS,
        "token_text": [token_text(i) for i in range(VOCAB)],
        "eval_ids": EVAL_IDS,
        "yes_id": YES_ID,
        "no_id": NO_ID,
    }
    cot = [entry(spec, COT_VARIANTS, cot_case) for spec in TINY_SPECS]
    sed = [entry(spec, SED_VARIANTS, sed_case) for spec in TINY_SPECS[:2]]
    write("branches.json", head, cot_decoding=cot, sed=sed)


if __name__ == "__main__":
    main()
