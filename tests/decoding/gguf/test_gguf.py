"""GGUF files as models: the numbers, the configuration and the tokens that their authors' models have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants
from transformers import AutoModelForCausalLM, PreTrainedModel

from decoding.gguf.architecture import Place
from decoding.gguf.convert import convert
from decoding.gguf.reader import UnsupportedFile, read
from decoding.gguf.tokenizer import TokenType, Vocabulary, special_ids
from decoding.gguf.weights import numbers
from decoding.kernels import cpu as kernels
from decoding.model.loading import load, wrap
from tests.decoding.gguf.gguf_files import SPECIAL, WORDS, byte_words, finish, rounded, score_words, sized, write
from tests.decoding.model.test_model import hidden_states, last_hidden, prompts
from tests.decoding.rounding_error import of_model, ulp

Change = Callable[[gguf.GGUFWriter], None]


def converted(path: Path) -> Path:
    directory = path.with_suffix("")
    directory.mkdir()
    convert(path, directory, lambda *_: None)
    return directory


def llama_file(folder: Path, *changes: Change, words: Any = WORDS, **options: Any) -> Path:
    model = sized("llama", num_hidden_layers=1, **options)
    return write(folder / "m.gguf", model, Type.F32, *changes, words=words)


def document(path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / name).read_text())
    return found


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: sized("llama"),
    "llama-tied": lambda: sized("llama", tie_word_embeddings=True),
    "llama-biases": lambda: sized("llama", attention_bias=True, mlp_bias=True),
    "qwen2": lambda: sized("llama", model_type="qwen2"),
    "qwen3": lambda: sized("qwen3", tie_word_embeddings=True),
    "gemma": lambda: sized("llama", model_type="gemma", head_dim=32, tie_word_embeddings=True),
}


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """Biases and norms of which no number says nothing."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data += (0.3 * torch.randn(weight.shape, generator=generator)).bfloat16().float()
            weight.data = weight.data.bfloat16().float()
    return model


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("llama", kind) for kind in (Type.F32, Type.F16, Type.BF16, Type.Q5_1, Type.Q4_0)),
        *((name, Type.Q8_0) for name in MODELS),
    ],
)
def test_a_file_is_the_model_it_was_written_from(tmp_path: Path, name: str, kind: Type) -> None:
    expected = rounded(shaken(MODELS[name]()), kind)
    directory = converted(write(tmp_path / "m.gguf", shaken(MODELS[name]()), kind, words=WORDS))
    found = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    weights = found.state_dict()
    for key, weight in expected.state_dict().items():
        # the file has Gemma's norms with 1 added, which rounds once
        added = ulp(1 + float(weight.abs().max())) / 2 if name == "gemma" and weight.dim() == 1 else 0.0
        assert ((weights[key] - weight).abs() <= added).all(), key
    (tokens,) = prompts(40)
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        error = 2 * of_model(expected, lambda lm: lm(ids).logits)
        assert ((found(ids).logits - expected(ids).logits).abs() <= error).all()


def test_float_files_keep_their_type_and_others_are_bfloat16(tmp_path: Path) -> None:
    dtypes = {}
    for kind in (Type.F32, Type.F16, Type.BF16, Type.Q8_0):
        file = write(tmp_path / f"{kind.name}.gguf", sized("llama", num_hidden_layers=1), kind, words=WORDS)
        dtypes[kind.name] = document(converted(file), "config.json")["dtype"]
    assert dtypes == {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q8_0": "bfloat16"}


@pytest.mark.parametrize("kind", list(quants._type_traits), ids=lambda kind: str(kind.name))
def test_every_type_that_gguf_can_dequantise_is_read_as_gguf_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Type
) -> None:
    _, size = gguf.GGML_QUANT_SIZES[kind]
    bytes_ = np.random.default_rng(0).integers(0, 256, (12, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tensor("t", bytes_, raw_dtype=kind)
    (tensor,) = read(finish(writer, tmp_path / "t.gguf")).tensors
    monkeypatch.setattr("decoding.gguf.weights.BLOCK", 5 * tensor.n_elements // 12)  # blocks of five rows, one of two
    with np.errstate(all="ignore"):
        blocks = list(numbers(tensor, Place("t", (12, tensor.n_elements // 12))))
        assert [len(block) for block in blocks] == [5, 5, 2]
        assert np.array_equal(np.concatenate(blocks), gguf.dequantize(bytes_, kind), equal_nan=True)


def test_heads_are_put_in_order_whole_however_small_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoding.gguf.weights.BLOCK", 1)
    directory = converted(llama_file(tmp_path))
    found = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    for key, weight in sized("llama", num_hidden_layers=1).state_dict().items():
        assert torch.equal(found[key], weight), key


def test_our_engine_serves_it_in_eight_bits_too(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", sized("llama"), Type.Q8_0, words=WORDS)
    directory = str(converted(file))
    (tokens,) = prompts(30)
    plain = hidden_states(load(directory, device="cpu", dtype="float32"), tokens, 30)
    expected = hidden_states(wrap(rounded(sized("llama"), Type.Q8_0)), tokens, 30)
    error = 2 * of_model(rounded(sized("llama"), Type.Q8_0).base_model, last_hidden(tokens))
    assert ((plain - expected).abs() <= error).all()
    if kernels.available():
        found = hidden_states(load(directory, device="cpu", dtype="auto", quantize="int8"), tokens, 30)
        expected = hidden_states(wrap(rounded(sized("llama"), Type.Q8_0), quantize="int8"), tokens, 30)
        assert torch.equal(found, expected)


def rope(kind: str, **values: float) -> Change:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", kind)
        for key, value in values.items():
            writer.add_float32(f"llama.rope.scaling.{key}", value)

    return change


def divided_as_in(model: PreTrainedModel, times: float = 1.0) -> Change:
    """rope_freqs: what the model divides its frequencies by."""
    base, own = model.config.rope_parameters["rope_theta"], model.base_model.rotary_emb.inv_freq.numpy()
    plain = base ** (-np.arange(len(own)) / len(own))
    return lambda writer: writer.add_tensor("rope_freqs.weight", (times * plain / own).astype(np.float32))


def test_scaled_rotary_frequencies_are_transformers_own(tmp_path: Path) -> None:
    kinds = {"linear": {"factor": 4.0}, "yarn": {"factor": 4.0, "original_max_position_embeddings": 64}}
    for kind, options in kinds.items():
        expected = sized("llama", rope_parameters={"rope_theta": 10000.0, "rope_type": kind} | options)
        scale = rope(kind, factor=4.0)
        length = [lambda writer: writer.add_uint32("llama.rope.scaling.original_context_length", 64)]
        file = write(tmp_path / f"{kind}.gguf", expected, Type.F32, scale, *length, words=WORDS)
        found = AutoModelForCausalLM.from_pretrained(converted(file), dtype=torch.float32)
        frequencies = found.base_model.rotary_emb
        assert torch.equal(frequencies.inv_freq, expected.base_model.rotary_emb.inv_freq), kind
        assert frequencies.attention_scaling == expected.base_model.rotary_emb.attention_scaling


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip


def test_llama_3s_frequencies_are_recognised_by_what_they_are_divided_by(tmp_path: Path) -> None:
    wide = sized("llama", head_dim=64, num_hidden_layers=1, rope_parameters=LLAMA3)
    file = write(tmp_path / "m.gguf", wide, Type.F32, divided_as_in(wide), words=WORDS)
    assert document(converted(file), "config.json")["rope_parameters"] == LLAMA3
    other = write(tmp_path / "n.gguf", wide, Type.F32, divided_as_in(wide, times=1.1), words=WORDS)
    with pytest.raises(UnsupportedFile, match="rope_freqs"):
        converted(other)


TEXT = "fooBar Don't 12345\n\n  x"
DIGITS = ["1", "2", "3", "4", "5"]
CUTS = {
    "gpt-2": ["fooBar", " Don", "'t", " 12345", "\n\n ", " x"],
    "smollm": ["fooBar", " Don", "'t", " ", *DIGITS, "\n\n ", " x"],
    "llama-bpe": ["fooBar", " Don", "'t", " ", "123", "45", "\n\n", " ", " x"],
    "qwen2": ["fooBar", " Don", "'t", " ", *DIGITS, "\n\n", " ", " x"],
    "tekken": ["foo", "Bar", " Don", "'t", " ", *DIGITS, "\n\n", " ", " x"],
    "gpt-4o": ["foo", "Bar", " Don't", " ", "123", "45", "\n\n", " ", " x"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_a_text_is_cut_as_the_models_authors_cut_it(tmp_path: Path, pre: str) -> None:
    directory = converted(llama_file(tmp_path, words=byte_words(pre, "a b")))
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.pre_tokenizer is not None
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[start:end] for _, (start, end) in pieces] == CUTS[pre]


def test_byte_level_tokens_are_merged_in_order_and_survive_the_round_trip(tmp_path: Path) -> None:
    directory = converted(llama_file(tmp_path, words=byte_words("gpt-2", "b c", "a b", "ab c")))
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("abc<tool>").tokens == ["a", "bc", "<tool>"]
    text = "naïve 日本 <tool> 😀"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<s>a").ids[0] == 0
    assert tokenizer.decode(tokenizer.encode("<s>a").ids) == "a", "control tokens are special"


def test_llama_3_takes_a_piece_that_is_a_token_whole(tmp_path: Path) -> None:
    directory = converted(llama_file(tmp_path, words=byte_words("llama-bpe", "b c", "a b", "ab c", adds_bos=False)))
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("abc").tokens == ["abc"]


@pytest.mark.parametrize(
    ("pre", "asked", "begins"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False), ("qwen2", True, True)],
)
def test_a_text_begins_with_bos_where_the_file_or_its_kind_says_so(
    tmp_path: Path, pre: str, asked: bool | None, begins: bool
) -> None:
    directory = converted(llama_file(tmp_path, words=byte_words(pre, "a b", adds_bos=asked)))
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert (tokenizer.encode("ab").tokens[0] == "<s>") == begins
    assert tokenizer.encode("ab", add_special_tokens=False).tokens == ["ab"]


SCORED = [*((char, -20.0) for char in "▁abchelo"), ("ab", -3.0), ("bc", -2.0), ("he", -5.0), ("ll", -6.0),
          ("hell", -7.0), ("hello", -8.0), ("▁hello", -9.0)]  # fmt: skip


def test_sentencepiece_joins_the_best_scored_neighbours_first(tmp_path: Path) -> None:
    directory = converted(llama_file(tmp_path, words=score_words(*SCORED)))
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("hello abc").tokens == ["<s>", "▁hello", "▁", "a", "bc"]
    assert tokenizer.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    for text in ("hello  abc\n日本", "a b"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert document(directory, "config.json")["eos_token_id"] == 2, "llama.cpp's own where the file names none"


def test_sentencepiece_without_a_space_in_front(tmp_path: Path) -> None:
    directory = converted(llama_file(tmp_path, words=score_words(*SCORED, prefixes=False)))
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("hello abc").tokens == ["<s>", "hello", "▁", "a", "bc"]
    assert tokenizer.decode(tokenizer.encode(" abc").ids) == " abc"


def test_the_chat_template_and_every_end_come_along(tmp_path: Path) -> None:
    words = byte_words("llama-bpe", "a b", template="{{ messages }}")
    directory = converted(llama_file(tmp_path, lambda writer: writer.add_eot_token_id(2), words=words))
    assert (directory / "chat_template.jinja").read_text() == "{{ messages }}"
    for name in ("config.json", "generation_config.json"):
        assert document(directory, name)["eos_token_id"] == [1, 2]
    assert document(directory, "tokenizer_config.json")["eos_token"] == SPECIAL[1]


@pytest.mark.parametrize(("kind", "ends"), [(TokenType.CONTROL, [1, 3]), (TokenType.NORMAL, 1)])
def test_the_end_of_a_turn_is_known_by_its_text_where_the_file_does_not_name_it(kind: TokenType, ends: object) -> None:
    tokens, types = ("a", "</s>", "b", "<|im_end|>"), (TokenType.NORMAL, TokenType.CONTROL, TokenType.NORMAL, kind)
    vocabulary = Vocabulary(tokens, types, {"eos": 1}, is_byte_level=True, adds_bos=False, adds_eos=False)
    assert special_ids(vocabulary) == {"eos_token_id": ends}


def test_the_templates_for_tools_and_documents_come_along(tmp_path: Path) -> None:
    named = [{"name": name, "template": f"{{{{ {name} }}}}"} for name in ("default", "tool_use", "rag", "../other")]
    directory = converted(llama_file(tmp_path, lambda writer: writer.add_chat_template(named)))
    assert (directory / "chat_template.jinja").read_text() == "{{ default }}"
    others = {file.name: file.read_text() for file in (directory / "additional_chat_templates").iterdir()}
    assert others == {"tool_use.jinja": "{{ tool_use }}", "rag.jinja": "{{ rag }}"}


REFUSED: dict[str, tuple[Change, str]] = {
    "architecture": (lambda writer: writer.add_string("general.architecture", "rwkv6"), "architecture is rwkv6"),
    "experts": (lambda writer: writer.add_expert_count(8), "mixture of experts"),
    "tokenizer": (lambda writer: writer.add_tokenizer_model("bert"), "tokenizer is of type 'bert'"),
    "pre-tokenizer": (lambda writer: writer.add_tokenizer_pre("new"), "pre-tokenizer is 'new'"),
    "part": (lambda writer: writer.add_uint16("split.count", 3), "one of 3 parts"),
    "layers": (lambda writer: writer.add_block_count(2), "lacks the tensor blk.1.attn_norm.weight"),
    "width": (lambda writer: writer.add_feed_forward_length(64), r"ffn_gate.weight is of shape \(96, 64\)"),
    "tensor": (lambda writer: writer.add_tensor("x.weight", np.zeros(4, np.float32)), "unknown tensor 'x.weight'"),
    "heads": (lambda writer: writer.add_head_count([4, 2]), "head_count is not one positive number"),
    "rotation": (lambda writer: writer.add_rope_dimension_count(8), "only part of each head"),
    "scaling": (rope("longrope", factor=2.0), "not supported .longrope."),
    "merges": (lambda writer: writer.add_token_merges(["q zz"]), "merges do not match"),
    "words": (lambda writer: writer.add_token_list(["a", "a"]), "names a token twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    change, reason = REFUSED[name]
    with pytest.raises(UnsupportedFile, match=reason):
        converted(llama_file(tmp_path, change))


def test_a_type_that_gguf_cannot_read_is_refused(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        del writer.tensors[0]["output_norm.weight"]
        writer.add_tensor("output_norm.weight", np.zeros(64, np.int8), raw_dtype=Type.I8)

    with pytest.raises(UnsupportedFile, match=r"output_norm.weight is of type I8"):
        converted(llama_file(tmp_path, change))


def test_a_file_cut_off_anywhere_is_said_to_be_damaged(tmp_path: Path) -> None:
    whole = llama_file(tmp_path).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 4, 10, 24, 40, *range(100, len(whole), len(whole) // 40), len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(UnsupportedFile, match=r"cut\.gguf is damaged, incomplete"):
            read(cut)


def test_a_count_beyond_the_file_ends_at_once(tmp_path: Path) -> None:
    """The stock reader would go on reading nothing for ever."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("tokenizer.ggml.token_type", [1, 1, 1])
    file = finish(writer, tmp_path / "m.gguf")
    count = (3).to_bytes(8, "little") + (1).to_bytes(4, "little") * 3
    file.write_bytes(file.read_bytes().replace(count, (1 << 60).to_bytes(8, "little") + count[8:]))
    with pytest.raises(UnsupportedFile, match="damaged"):
        read(file)


def test_weights_that_the_disk_has_no_room_for_are_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"no room in .* for the model's dequantised weights"):
        converted(llama_file(tmp_path))


def test_every_stage_is_reported_from_its_begin_to_its_end(tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    (tmp_path / "d").mkdir()
    convert(llama_file(tmp_path), tmp_path / "d", lambda stage, fraction: steps.append((stage, fraction)))
    ends = dict(steps)
    assert list(ends) == ["reading the GGUF file", "dequantising the weights"]
    assert set(ends.values()) == {1.0}


def test_the_command_answers_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    command = [sys.executable, "-m", "decoding.gguf.unpacking", str(tmp_path / "bad.gguf")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("polydecode: bad.gguf is damaged")
