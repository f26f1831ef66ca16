"""lm-evaluation-harness `local-completions` on two tasks built from local files: URL MODEL TOKENIZER TASKS OUTPUT.

Writes what the harness got for each item: of the multiple-choice task (context, continuation, log-likelihood, is it
what greedy decoding says), of the generation task (prompt, text).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CHOICE = """\
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}]
"""
GENERATE = """\
task: local_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
CHOICES = [
    {"question": "The capital of France is", "choices": ["Paris", "Paris.", "London"], "answer": 0},
    {
        "question": "What do bees make?\nAnswer:",
        "choices": ["honey", "a very long story about the sea"],
        "answer": 0,
    },
    {"question": "Wie heißt das Tier? 🙂", "choices": ["Katze", "猫"], "answer": 1},
]
QUESTIONS = [
    {"question": "The capital of France is", "target": "Paris"},
    {"question": "One, two, three,", "target": "four"},
]


def write_tasks(folder: Path) -> None:
    for name, template, rows in (("choice", CHOICE, CHOICES), ("generate", GENERATE, QUESTIONS)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(template.format(data=data), encoding="utf-8")


def main() -> None:
    url, model, tokenizer, folder, output = sys.argv[1:]
    write_tasks(Path(folder))
    from lm_eval import simple_evaluate  # noqa: PLC0415 - slow: the tasks are written first
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    found = simple_evaluate(
        model="local-completions",
        model_args={
            "model": model, "base_url": f"{url}/v1/completions", "tokenizer": tokenizer, "num_concurrent": 2,
            "max_length": 2048, "max_retries": 1,
        },
        tasks=["local_choice", "local_generate"],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )  # fmt: skip
    samples = found["samples"]
    scored = [
        (*arguments, logprob, is_greedy)
        for sample in samples["local_choice"]
        for arguments, ((logprob, is_greedy),) in zip(sample["arguments"], sample["resps"], strict=True)
    ]
    said = [(sample["arguments"][0][0], sample["resps"][0][0]) for sample in samples["local_generate"]]
    accuracy = found["results"]["local_choice"]["acc,none"]
    Path(output).write_text(json.dumps({"scored": scored, "said": said, "accuracy": accuracy}), encoding="utf-8")


if __name__ == "__main__":
    main()
