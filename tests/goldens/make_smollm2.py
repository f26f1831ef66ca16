"""Make `smollm2_strategies.json` with transformers 4.55.4: SmolLM2 under every deterministic strategy.

    golden/bin/python -m tests.goldens.make_smollm2 [STRATEGY …]

`make.py` says how to build that environment; strategies not named keep what the file says of them. Batch 1, no padding,
float32, one thread. No decision on a recorded way may hang on an order of summation: where the processed scores of a
single row decide alone, the two best are MIN_GAP apart at every step; every other way (kept beams, cosines, premature
layers) came out the same once more, with noise of up to JITTER on every logit and a relative NORM_JITTER on
every final hidden state. A prompt that fails is replaced by the next one of `prompts.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.goldens.make import HERE, MIN_GAP, load_smollm2, rendered, smallest_gap, write
from tests.goldens.prompts import PROMPTS
from tests.goldens.tiny import weights_sha256

FILE = "smollm2_strategies.json"
NUM_PROMPTS = 20
SHORT = 16  # new tokens where a step costs several rows or layers
JITTER = 2.5e-4
NORM_JITTER = 1e-5

NEGATIVE = "A dull and repetitive text:"
BAD_WORDS = (" the", ".", ",", "is a", " they")


@dataclass(frozen=True)
class Spec:
    """hf: options of transformers' generate. body: the same in the words of our API, temperature 0 aside."""

    name: str
    hf: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    max_tokens: int = 20
    has_gap: bool = True  # whether the scores that generate reports decide alone
    needs_noise: bool = False


def same(name: str, **options: Any) -> Spec:
    """Both sides call the options alike."""
    return Spec(name, options, options)


def beams(name: str, num_beams: int, n: int = 1, **options: Any) -> Spec:
    hf = {"num_beams": num_beams, "num_return_sequences": n, **options}
    body = {"num_beams": num_beams, "n": n, **options}
    return Spec(name, hf, body, SHORT, has_gap=False, needs_noise=True)


def dola(name: str, layers: str | list[int]) -> Spec:
    options: dict[str, Any] = {"dola_layers": layers, "repetition_penalty": 1.2}
    return Spec(name, options, options, SHORT, needs_noise=True)


def specs(tokenizer: Any) -> tuple[Spec, ...]:
    negative_ids = tokenizer(NEGATIVE, add_special_tokens=False).input_ids
    guidance = {"guidance_scale": 1.5}
    contrastive = {"penalty_alpha": 0.6, "top_k": 4}
    return (
        same("repetition_penalty", repetition_penalty=1.2),
        same("no_repeat_ngram", no_repeat_ngram_size=3),
        Spec("bad_words", {"bad_words_ids": bad_word_ids(tokenizer)}, {"bad_words": list(BAD_WORDS)}),
        same("exponential_decay", exponential_decay_length_penalty=[4, 1.3]),
        Spec("min_tokens", {"min_new_tokens": 14}, {"min_tokens": 14}),
        Spec("contrastive", contrastive, contrastive, SHORT, has_gap=False, needs_noise=True),
        beams("beam_4", 4, length_penalty=1.0, early_stopping=False),
        beams("beam_4_first_best", 4, n=2, length_penalty=0.6, early_stopping=True),
        beams("beam_3_never", 3, length_penalty=2.0, early_stopping="never"),
        beams("beam_3_penalised", 3, n=3, repetition_penalty=1.2, no_repeat_ngram_size=3),
        beams("group_beam", 4, n=2, num_beam_groups=2, diversity_penalty=0.5),
        Spec(
            "guidance",
            guidance | {"negative_prompt_ids": torch.tensor([negative_ids])},
            guidance | {"negative_prompt": NEGATIVE},
        ),
        dola("dola_low", "low"),
        dola("dola_high", "high"),
        dola("dola_list", [3, 9, 20, 27]),
    )


def bad_word_ids(tokenizer: Any) -> list[list[int]]:
    """Each word as it is encoded at the start of a text and after a space, as vLLM reads its `bad_words`."""
    words: list[list[int]] = []
    for word in BAD_WORDS:
        bare, spaced = (tokenizer(p + word.lstrip(" "), add_special_tokens=False).input_ids for p in ("", " "))
        words.append(bare)
        if spaced[0] != bare[0] and len(spaced) == len(bare):
            words.append(spaced)
    return words


def generate(model: Any, spec: Spec, prompt_ids: list[int], eos_id: int) -> Any:
    input_ids = torch.tensor([prompt_ids])
    return model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        max_new_tokens=spec.max_tokens,
        return_dict_in_generate=True,
        output_scores=True,
        **spec.hf,
    )


def choices(out: Any, num_prompt: int, eos_id: int) -> list[dict[str, Any]]:
    """What generate returned, without pads; scores where it gives them."""
    scores = getattr(out, "sequences_scores", None)
    found = []
    for i, sequence in enumerate(out.sequences[:, num_prompt:].tolist()):
        has_ended = eos_id in sequence
        ids = sequence[: sequence.index(eos_id) + 1] if has_ended else sequence
        choice = {"token_ids": ids, "finish_reason": "stop" if has_ended else "length"}
        found.append(choice if scores is None else choice | {"score": round(float(scores[i]), 6)})
    return found


def ids_of(found: list[dict[str, Any]]) -> list[list[int]]:
    return [choice["token_ids"] for choice in found]


@contextmanager
def jittered(model: Any) -> Iterator[None]:
    generator = torch.Generator().manual_seed(7)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) * 2 - 1

    hooks = [
        model.model.norm.register_forward_hook(lambda *call: call[2] * (1 + NORM_JITTER * noise(call[2]))),
        model.lm_head.register_forward_hook(lambda *call: call[2] + JITTER * noise(call[2])),
    ]
    yield
    for hook in hooks:
        hook.remove()


@dataclass(frozen=True)
class Recorder:
    model: Any
    eos_id: int

    def record(self, spec: Spec, name: str, prompt_ids: list[int]) -> tuple[dict[str, Any], str | None]:
        """The entry, and why it must not be kept if so."""
        out = generate(self.model, spec, prompt_ids, self.eos_id)
        found = choices(out, len(prompt_ids), self.eos_id)
        entry = {"prompt": name, "choices": found}
        if spec.has_gap and smallest_gap(out.scores) < MIN_GAP:
            return entry, "gap"
        is_steady = not spec.needs_noise or self.noisy(spec, prompt_ids) == ids_of(found)
        return entry, None if is_steady else "noise"

    def noisy(self, spec: Spec, prompt_ids: list[int]) -> list[list[int]]:
        with jittered(self.model):
            out = generate(self.model, spec, prompt_ids, self.eos_id)
        return ids_of(choices(out, len(prompt_ids), self.eos_id))

    def strategy(self, spec: Spec, prompts: dict[str, list[int]]) -> dict[str, Any]:
        cases: list[dict[str, Any]] = []
        dropped: list[dict[str, str]] = []
        for name, prompt_ids in prompts.items():
            entry, why = self.record(spec, name, prompt_ids)
            print(f"{spec.name} {name}: {why or 'kept'}", flush=True)
            if why is None:
                cases.append(entry)
            else:
                dropped.append({"prompt": name, "why": why})
            if len(cases) == NUM_PROMPTS:
                break
        return {"name": spec.name, "body": spec.body, "max_tokens": spec.max_tokens, "dropped": dropped, "cases": cases}


def make(wanted: list[str]) -> None:
    model, tokenizer = load_smollm2()
    checksum = weights_sha256(model)
    recorder = Recorder(model.float(), model.generation_config.eos_token_id)
    texts = {prompt.name: rendered(tokenizer, prompt) for prompt in PROMPTS}
    prompts = {name: tokenizer(text, add_special_tokens=False).input_ids for name, text in texts.items()}
    head = {
        "model": "as in smollm2_greedy.json",
        "weights_sha256": checksum,
        "eos_token_ids": [recorder.eos_id],
        "prompts": prompts,
    }
    path = HERE / FILE
    kept = {s["name"]: s for s in json.loads(path.read_text(encoding="utf-8"))["strategies"]} if path.exists() else {}
    for spec in specs(tokenizer):
        if spec.name in wanted or spec.name not in kept:
            kept[spec.name] = recorder.strategy(spec, prompts)
            done = [kept[s.name] for s in specs(tokenizer) if s.name in kept]
            write(FILE, head, strategies=done)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(sys.argv[1:])
