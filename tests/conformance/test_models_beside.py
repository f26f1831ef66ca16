"""`--also`: small models beside the main one, each from a directory of its own, over HTTP."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.conformance.servers.tiny_server import FLAGS, tiny_model, tiny_server
from tests.decoding.tiny import tiny
from tests.running_server import ROOT, clean_environment

PROMPT = [5, 6, 7, 8, 40, 41]
LAYERS = {"main": 3, "old": 1, "new": 2}
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of one tokenizer and of different depths."""
    made = {name: tmp_path_factory.mktemp(name) for name in LAYERS}
    tiny_model(made["main"])
    vocab_size = AutoModelForCausalLM.from_pretrained(made["main"]).config.vocab_size
    for name in ("old", "new"):
        shutil.copytree(made["main"], made[name], dirs_exist_ok=True)
        shape = {"num_hidden_layers": LAYERS[name], "max_position_embeddings": 2048}
        tiny("llama", vocab_size=vocab_size, **shape).save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def client(directories: dict[str, Path]) -> Iterator[httpx.Client]:
    also = [part for name in ("old", "new") for part in ("--also", f"{name}={directories[name]}")]
    with tiny_server(directories["main"], *also) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def bare(directories: dict[str, Path]) -> dict[str, PreTrainedModel]:
    return {name: AutoModelForCausalLM.from_pretrained(path) for name, path in directories.items()}


def complete(client: httpx.Client, fields: dict[str, Any]) -> dict[str, Any]:
    asked = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    response = client.post("/v1/completions", json=asked | {"logprobs": 2} | fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([list(ids)])).logits[0, -1].float()
    return found


def steered(z: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return z + new - old


def contrasted(z: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    expert, amateur = z.softmax(-1), old.softmax(-1)
    return torch.where(expert >= 0.1 * expert.max(), (expert / amateur).log(), -torch.inf)


def multiplied(z: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return z.log_softmax(-1) + 0.5 * old.log_softmax(-1) + 2 * new.log_softmax(-1)


CASES = {
    "dexperts": ({"dexperts": {"expert": "new", "anti_expert": "old"}}, steered),
    "contrastive_decoding": ({"contrastive_decoding": {"amateur": "old"}}, contrasted),
    "ensemble": ({"ensemble": {"models": ["old", "new"], "weights": [1, 0.5, 2]}}, multiplied),
}


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_a_loop_over_the_directories_models(
    client: httpx.Client, bare: dict[str, PreTrainedModel], name: str
) -> None:
    fields, combine = CASES[name]
    expected: list[int] = []
    for _ in range(NUM_TOKENS):
        each = (logits(bare[model], (*PROMPT, *expected)) for model in LAYERS)
        expected.append(int(combine(*each).argmax()))
    answer = complete(client, fields)
    choice = answer["choices"][0]
    assert choice["token_ids"] == expected
    own = [logits(bare["main"], (*PROMPT, *expected[:i])).log_softmax(-1)[t] for i, t in enumerate(expected)]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx([float(x) for x in own], abs=1e-3)
    assert answer["decoding"]["strategy"] == name
    assert answer["decoding"]["effective"][name].items() >= fields[name].items()


def test_together_with_beams_and_samples_it_answers_as_alone(client: httpx.Client) -> None:
    asked: list[dict[str, Any]] = [
        *(fields for fields, _ in CASES.values()),
        *({"temperature": 1.2, "seed": 4} | fields for fields, _ in CASES.values()),
        {"temperature": None, "num_beams": 4, "n": 2},
        {"temperature": 1.0, "n": 3, "seed": 9},
    ]
    alone = [complete(client, fields)["choices"] for fields in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda fields: complete(client, fields)["choices"], asked))
    assert together == alone


def test_a_model_that_is_not_loaded_is_a_400_that_names_the_field(client: httpx.Client) -> None:
    fields = {"dexperts": {"expert": "new", "anti_expert": "older"}}
    response = client.post("/v1/completions", json={"prompt": PROMPT} | fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "dexperts.anti_expert"
    assert client.post("/v1/completions", json={"prompt": PROMPT, "model": "new"}).status_code == 404


def test_what_is_loaded_is_told(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert [(each["name"], each["architecture"]) for each in model["beside"]] == [
        ("old", "LlamaForCausalLM"),
        ("new", "LlamaForCausalLM"),
    ]
    assert all(each["kv_tokens"] >= 256 for each in model["beside"])
    assert {*CASES} <= {*model["supports"]["strategies"]}
    metrics = client.get("/metrics").text
    assert all(f'polydecode_model_kv_pages{{model="{name}"}}' in metrics for name in LAYERS)


def test_a_model_of_another_tokenizer_ends_the_start_by_its_name(directories: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(directories["old"], other)
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<other>")])
    tokenizer.save(str(other / "tokenizer.json"))
    flags = ("--model", str(directories["main"]), *FLAGS, "--port", "0", "--also", f"judge={other}")
    done = subprocess.run(
        [sys.executable, "-m", "server", "serve", *flags],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "polydecode: judge model: its tokenizer has other tokens than the model's"
