"""The table of what quantising costs runs to its end with a tiny model; its bytes are the weights' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from decoding.kernels import cpu as kernels
from decoding.model.loading import wrap
from loadtest.engine.quantize_bench import main
from tests.decoding.tiny import tiny


def test_the_table_has_a_line_for_each_form(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    tiny("llama").save_pretrained(directory)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "text.txt").write_text(" ".join(f"w{i * 7 % 97}" for i in range(60)))
    forms = ["float32", "transformers-bfloat16", *(["bfloat16", "int8"] if kernels.available() else [])]
    lines: list[str] = []
    flags = ["--device", "cpu", "--forms", *forms, "--text", str(tmp_path / "text.txt"), "--rows", "1", "3",
             "--prompt", "9", "--new", "6", "--json", str(tmp_path / "out.json")]  # fmt: skip
    assert main([str(directory), *flags], lines.append) == 0
    header, _, *body = lines[-1].splitlines()
    assert header.count("|") == 1 + 3 + 2 * 2
    assert [line.split("`")[1] for line in body] == forms
    document = json.loads((tmp_path / "out.json").read_text())
    assert [len(line["speeds"]) for line in document["lines"]] == [2, 0, 2, 2][: len(forms)]
    found = [line["perplexity"] for line in document["lines"]]
    assert found == pytest.approx([found[0]] * len(forms), rel=0.1)
    assert all(speed["tick_seconds"] > 0 for line in document["lines"] for speed in line["speeds"])


@pytest.mark.skipif(not kernels.available(), reason="no compiled kernels here")
def test_the_bytes_of_a_step_are_those_of_the_linears_as_packed() -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    numbers = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 64 * 96
    assert wrap(tiny("llama", vocab_size=96, **sizes)).weight_bytes == 4 * numbers
    rounded = wrap(tiny("llama", vocab_size=96, **sizes), quantize="int8")
    padding = 64 * 64 * 2 - 64 * 32 * 2 + 64 * 64  # to whole groups of inputs and panels
    assert numbers < rounded.weight_bytes < 1.2 * numbers + padding
