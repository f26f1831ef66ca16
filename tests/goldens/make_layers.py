"""Records layers.json: contrastive search, DoLa, guidance, KL-guided temperature and entropix by their sources.

    golden/bin/python -m tests.goldens.make_layers

from the repository root, in the environment that make.py describes. Contrastive search, DoLa and guidance are
generate()'s own of transformers 4.55.4 at batch 1; KL-guided runs are a plain loop over whole forwards without a cache;
entropix is derived again in numpy. Paths on which a decision is closer than MIN_GAP are dropped, and with DoLa also
those on which a token comes close to the border of plausibility.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation import utils

from tests.goldens.make import GPT2_SHAPE, LLAMA_SHAPE, MIN_GAP, finish_reason, greedy, smallest_gap, write
from tests.goldens.tiny import TinySpec, build, weights_sha256

NEW_TOKENS = 16
NUM_PROMPTS = 3
SPECS = (
    TinySpec("llama", LLAMA_SHAPE | {"num_hidden_layers": 6}, seed=21, eos_token_ids=(2,)),
    TinySpec("gpt2", GPT2_SHAPE | {"n_layer": 4}, seed=22, eos_token_ids=(2, 40, 77)),
    TinySpec("qwen2", LLAMA_SHAPE | {"num_hidden_layers": 6, "tie_word_embeddings": True}, 23, (2, 5)),
)
DEPTHS = (1, 2, 3, 4, 5, 6, 30, 40, 41, 46)
Options = dict[str, Any]
CONTRASTIVE: tuple[Options, ...] = (
    {"penalty_alpha": 0.6, "top_k": 4},
    {"penalty_alpha": 0.3, "top_k": 6, "repetition_penalty": 1.3},
    {"penalty_alpha": 0.8, "top_k": 8, "min_new_tokens": 12},
)
DOLA: tuple[Options, ...] = (
    {"dola_layers": "low"},
    {"dola_layers": "high", "repetition_penalty": 1.2},
    {"dola_layers": [0, 1, 2, 3]},
    {"dola_layers": [3, 1], "repetition_penalty": 1.2, "min_new_tokens": 12},
)
GUIDED: tuple[Options, ...] = (
    {"guidance_scale": 1.5},
    {"guidance_scale": 3.0, "repetition_penalty": 1.3},
    {"guidance_scale": 0.0},
    {"guidance_scale": 2.0, "min_new_tokens": 12},
)
KL_GUIDED: tuple[Options, ...] = ({"temperature": 1.0, "sigma": 1.0}, {"temperature": 1.7, "sigma": 3.0})


@contextmanager
def watching(name: str, watch: Callable[..., None]) -> Iterator[None]:
    """While entered, `watch` sees the arguments of every call of a function of transformers' generation."""
    watched = getattr(utils, name)

    def call(*args: Any) -> Any:
        watch(*args)
        return watched(*args)

    setattr(utils, name, call)
    yield
    setattr(utils, name, watched)


def two_best_apart(scores: torch.Tensor) -> float:
    """The distance of the two best of scores [n]; infinite for a single one."""
    best = scores.topk(2).values if len(scores) > 1 else torch.tensor([math.inf, 0.0])
    return float(best[0] - best[1])


def entry(options: Options, ids: list[int], spec: TinySpec, gaps: list[float], **more: Any) -> dict[str, Any]:
    reason = finish_reason(ids, spec.eos_token_ids)
    return options | {"token_ids": ids, "finish_reason": reason, "min_gap": round(min(*gaps, 99.0, 99.0), 6)} | more


# one run of each method


def contrastive(model: Any, spec: TinySpec, prompt: list[int], options: Options) -> dict[str, Any]:
    gaps: list[float] = []

    def watch(context: torch.Tensor, following: torch.Tensor, p: torch.Tensor, _mask: Any, a: float, _k: int) -> None:
        cosines = torch.cosine_similarity(context.double(), following.double(), dim=-1)  # [k, S]
        gaps.append(two_best_apart((1 - a) * p[0].double() - a * cosines.amax(dim=-1)))

    with watching("_ranking_fast", watch):
        ids, out = greedy(model, prompt, list(spec.eos_token_ids), max_new_tokens=NEW_TOKENS, **options)
    for scores in out.scores:  # the border between the candidates and the rest
        best = scores[0].topk(options["top_k"] + 1).values
        gaps.append(float(best[-2] - best[-1]))
    return entry(options, ids, spec, gaps)


def dola(model: Any, spec: TinySpec, prompt: list[int], options: Options) -> dict[str, Any]:
    gaps: list[float] = []
    chosen: list[int] = []
    candidates: set[int] = set()

    def watch(layers: list[int], premature: dict[int, torch.Tensor], final: torch.Tensor) -> None:
        logp = final[0].double().log_softmax(-1)
        divergences = torch.stack([jensen_shannon(logp, premature[j][0].double().log_softmax(-1)) for j in layers])
        gaps.append(two_best_apart(divergences / divergences.max()))
        gaps.append(10 * float((logp - logp.max() - math.log(0.1)).abs().min()))
        chosen.append(layers[int(divergences.argmax())])
        candidates.update(layers)

    with watching("_dola_select_contrast", watch):
        ids, out = greedy(model, prompt, list(spec.eos_token_ids), max_new_tokens=NEW_TOKENS, **options)
    gaps.append(smallest_gap(out.scores))
    return entry(options, ids, spec, gaps, chosen_layers=chosen, layers=sorted(candidates))


def jensen_shannon(logp: torch.Tensor, logq: torch.Tensor) -> torch.Tensor:
    """4.55.4's form, in float64: the average is compared with both."""
    average = (logp.exp() + logq.exp()) / 2
    return (average * (average.log() - logp) + average * (average.log() - logq)).sum() / 2


def guided(model: Any, spec: TinySpec, prompt: list[int], options: Options) -> dict[str, Any]:
    """The negative prompt is the prompt's tail, backwards; without it the prompt's last token, as generate() has it."""
    negative = prompt[:-4:-1] * 5 if options["guidance_scale"] != 1.5 else []
    given = {"negative_prompt_ids": torch.tensor([negative])} if negative else {}
    ids, out = greedy(model, prompt, list(spec.eos_token_ids), max_new_tokens=NEW_TOKENS, **options, **given)
    return entry(options, ids, spec, [smallest_gap(out.scores)], negative_ids=negative or prompt[-1:])


@torch.no_grad()
def kl_guided(model: Any, spec: TinySpec, prompt: list[int], options: Options) -> dict[str, Any]:
    """The path of the best tokens, and the temperature at each of its steps."""
    context = prompt[len(prompt) // 2 :]
    ids: list[int] = []
    divergences, temperatures, gaps = [], [], []
    while len(ids) < NEW_TOKENS and not set(ids) & set(spec.eos_token_ids):
        z = model(torch.tensor([prompt + ids])).logits[0, -1]
        logp = z.double().log_softmax(-1)
        logq = model(torch.tensor([context + ids])).logits[0, -1].double().log_softmax(-1)
        divergences.append(float((logp.exp() * (logp - logq)).sum()))
        temperatures.append(options["temperature"] * math.pow(0.5, divergences[-1] / options["sigma"]))
        gaps.append(two_best_apart(z))
        ids.append(int(z.argmax()))
    return entry(options, ids, spec, gaps, context_ids=context, divergences=divergences, temperatures=temperatures)


Run = Callable[[Any, TinySpec, list[int], Options], dict[str, Any]]
METHODS: dict[str, tuple[Run, tuple[Options, ...]]] = {
    "contrastive": (contrastive, CONTRASTIVE),
    "dola": (dola, DOLA),
    "guided": (guided, GUIDED),
    "kl_guided": (kl_guided, KL_GUIDED),
}


def runs(model: Any, spec: TinySpec, run: Run, options: Options, seed: int) -> list[dict[str, Any]]:
    """Unambiguous runs over random prompts of 4 to 36 ids without EOS."""
    generator = torch.Generator().manual_seed(seed)
    found: list[dict[str, Any]] = []
    for _ in range(200):
        length = 4 + 11 * len(found) % 33
        prompt = torch.randint(0, 96, (length,), generator=generator).tolist()
        if set(prompt) & set(spec.eos_token_ids):
            continue
        made = run(model, spec, prompt, options)
        if made["min_gap"] >= MIN_GAP:
            found.append({"prompt_token_ids": prompt} | made)
        if len(found) == NUM_PROMPTS:
            return found
    raise RuntimeError(f"too few unambiguous paths: {spec.model_type} {options}")


def model_entry(spec: TinySpec) -> dict[str, Any]:
    model = build(spec)
    made: dict[str, Any] = {
        "model_type": spec.model_type,
        "config": spec.config,
        "seed": spec.seed,
        "eos_token_ids": spec.eos_token_ids,
        "weights_sha256": weights_sha256(model),
    }
    for name, (run, variants) in METHODS.items():
        made[name] = [r for i, options in enumerate(variants) for r in runs(model, spec, run, options, seed=100 + i)]
        ended = sum(r["finish_reason"] == "stop" for r in made[name])
        print(f"{spec.model_type} {name}: {len(made[name])} runs, {ended} ended by EOS", flush=True)
    return made


# which layers "low" and "high" are


def candidates(depth: int, is_tied: bool, which: str) -> list[int] | None:
    """What generate() contrasts with in a model of that depth; None where it fails."""
    config = AutoConfig.for_model("llama", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=depth,
                                  num_attention_heads=1, tie_word_embeddings=is_tied)  # fmt: skip
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config).eval()
    seen: list[list[int]] = []
    with watching("_dola_select_contrast", lambda layers, *_: seen.append(layers)):
        try:
            greedy(model, [1, 2], [7], max_new_tokens=1, dola_layers=which)
        except RuntimeError:
            return None
    return seen[0]


# entropix in numpy


def entropix_case(rng: np.random.Generator, spread: float, num_peaks: int) -> tuple[np.ndarray, np.ndarray]:
    """z [vocab] whose `num_peaks` first ids stand out by `spread`, and attention scores [heads, keys]."""
    z = rng.normal(size=160) * 0.3
    z[:num_peaks] += spread
    scores = rng.normal(size=(4, 9)) * 2
    return short(rng.permutation(z)), short(scores)


def short(x: np.ndarray) -> np.ndarray:
    """Multiples of 1/1024: short in JSON, exact in float32."""
    return (np.round(x * 1024) / 1024).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def measured(z: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    p, a = softmax(z.astype(np.float64)), softmax(scores.astype(np.float64))
    bits = -np.log2(p)
    h = float((p * bits).sum())
    head_entropies = -(a * np.log2(a)).sum(axis=1)
    return {
        "entropy": h,
        "varentropy": float((p * (bits - h) ** 2).sum()),
        "attention_entropy": float(head_entropies.mean()),
        "attention_varentropy": float(head_entropies.var()),
        "agreement": float(np.abs(a - a.mean(axis=0)).mean()),
        "interaction": float(np.abs(scores.astype(np.float64)).mean()),
    }


def where(m: dict[str, float]) -> str:
    h, v = m["entropy"], m["varentropy"]
    if h < 0.1 and v < 0.1:
        return "certain"
    if h > 5 and v < 0.1:
        return "thinking"
    if h < 5 and v > 5:
        return "forking"
    if h > 3 and v > 5:
        return "resampling"
    return "adaptive"


def sampled_with(m: dict[str, float]) -> dict[str, float] | None:
    t, top_p, top_k, min_p = 0.666, 0.9, 27, 0.03
    ah, av, agree, inter = (m[k] for k in ("attention_entropy", "attention_varentropy", "agreement", "interaction"))
    quadrant, u = where(m), m["entropy"] + m["varentropy"]
    if quadrant == "certain":
        return None
    if quadrant == "thinking":
        t = min(1.5, t * (1.3 + 0.2 * ah))
    elif quadrant == "forking":
        t, top_k = min(1.5, t * (1.2 + 0.3 * inter)), max(5, int(top_k * (1 + 0.5 * (1 - agree))))
    elif quadrant == "resampling":
        t, top_p = max(2.0, t * (2 + 0.5 * av)), max(0.5, top_p - 0.2 * ah)
    else:
        t *= 1 + 0.3 * u + 0.2 * (ah + av) - 0.2 * agree
        top_p = float(np.clip(top_p * (1 + 0.1 * av), 0.1, 1))
        top_k = int(np.clip(np.round(top_k * (1 + 0.3 * inter - 0.2 * agree)), 1, 100))
        min_p = float(np.clip(min_p * (1 - 0.5 * u), 0.01, 0.5))
    return {"temperature": t, "top_p": top_p, "top_k": top_k, "min_p": min_p}


def support(z: np.ndarray, s: dict[str, float], is_compat: bool) -> tuple[list[int], list[float], float]:
    """Ids that may be drawn, ascending, their probabilities, and how close the nearest decision is."""
    p = softmax(z.astype(np.float64) / s["temperature"])
    gaps = [1.0]
    if not is_compat:
        floor = s["min_p"] * p.max()
        gaps.append(float(np.abs(p / floor - 1).min()))
        p = np.where(p < floor, 0, p)
        p /= p.sum()
    order = np.argsort(-p, kind="stable")
    k = int(s["top_k"])
    if p[order[k - 1]] > 0 and k < len(p):
        gaps.append(float(p[order[k - 1]] / max(p[order[k]], 1e-30) - 1))
    chosen = order[:k] if not is_compat else order[:k][::-1]
    before = np.concatenate(([0.0], np.cumsum(p[chosen])[:-1]))
    gaps.append(float(np.abs(before - s["top_p"]).min()))
    kept = sorted(int(i) for i, b in zip(chosen, before, strict=True) if b <= s["top_p"] and p[i] > 0)
    return kept, [round(float(p[i] / p[kept].sum()), 9) for i in kept], min(gaps)


def entropix_cases() -> list[dict[str, Any]]:
    """Six of each quadrant."""
    rng = np.random.default_rng(5)
    cases: dict[str, list[dict[str, Any]]] = {}
    shapes = {"certain": (16, 1), "thinking": (0, 0), "forking": (6, 1), "resampling": (4, 3), "adaptive": (5, 12)}
    for name, (spread, num_peaks) in shapes.items():
        while len(cases.setdefault(name, [])) < 6:
            z, scores = entropix_case(rng, spread + rng.normal() * 0.3 * (spread > 0), num_peaks)
            if name == "thinking":
                z = short(z / 2)
            m = measured(z, scores)
            settings = sampled_with(m)
            if where(m) != name:
                continue
            case: dict[str, Any] = {"z": z.tolist(), "scores": scores.tolist(), "metrics": m, "quadrant": name}
            case["settings"] = settings
            if settings is not None:
                fixed, compat = (support(z, settings, is_compat) for is_compat in (False, True))
                if min(fixed[2], compat[2]) < 1e-4:
                    continue
                case |= {"ids": fixed[0], "p": fixed[1], "compat_ids": compat[0], "compat_p": compat[1]}
            cases[name].append(case)
    return [case for name in shapes for case in cases[name]]


def main() -> None:
    layers = [
        {"num_layers": n, "is_tied": t, "low": candidates(n, t, "low"), "high": candidates(n, t, "high")}
        for n in DEPTHS
        for t in (False, True)
    ]
    head = {"dtype": "float32", "weights": "see tiny.py", "max_new_tokens": NEW_TOKENS}
    models = [model_entry(spec) for spec in SPECS]
    write("layers.json", head, models=models, premature_layers=layers, entropix=entropix_cases())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
