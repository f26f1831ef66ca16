"""Turns the GGUF file of a Llama with byte-level BPE into a Hugging Face directory, dequantised to bfloat16.

Made for the embedded SmolLM2. transformers can load GGUF too, but takes fifteen times as long, wants accelerate, and
builds the tokenizer without the digit split that `tokenizer.ggml.pre = smollm` asks for. The weights are the same bits:
gguf's own dequantisation, rounded to nearest even. It knows nothing of caches and packages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants

Report = Callable[[str, float], None]  # (stage, fraction of it)

_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type

_TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class UnsupportedFile(ValueError):
    """Not the kind of GGUF this conversion was made for."""


class _Reader(gguf.GGUFReader):
    """gguf's reader over a plain array: indexing a memmap 500 000 times takes two thirds of the stock reader's time."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        return self._plain

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._plain = np.asarray(mapped)

    def value(self, key: str) -> Any:
        field = self.get_field(key)
        if field is None:
            raise UnsupportedFile(f"the GGUF file has no {key}")
        return field.contents()


def convert(path: Path, directory: Path, report: Report) -> None:
    """Write config, tokenizer and weights into the existing `directory`. Raises UnsupportedFile."""
    report("reading the packaged model", 0.0)
    reader = _Reader(path)
    expected = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    if any(reader.value(key) != value for key, value in expected.items()):
        raise UnsupportedFile(f"the GGUF file is not one of {expected}")
    report("reading the packaged model", 1.0)
    for name, content in _documents(reader).items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(reader.value("tokenizer.chat_template"), encoding="utf-8")
    _write_weights(reader, directory / "model.safetensors", report)


def _documents(reader: _Reader) -> dict[str, dict[str, Any]]:
    return {
        "config.json": _config(reader),
        "generation_config.json": _special_ids(reader),
        "tokenizer.json": _tokenizer(reader),
        "tokenizer_config.json": _tokenizer_config(reader),
    }


def _special_ids(reader: _Reader) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    return {f"{name}_token_id": reader.value(f"tokenizer.ggml.{key}_token_id") for key, name in names.items()}


def _config(reader: _Reader) -> dict[str, Any]:
    def number(key: str) -> Any:
        return reader.value(f"llama.{key}")

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": number("vocab_size"),
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "head_dim": number("rope.dimension_count"),
        "hidden_act": "silu",
        "max_position_embeddings": number("context_length"),
        # GGUF keeps float32, whose shortest form is the number the model was trained with (1e-05).
        "rms_norm_eps": float(str(np.float32(number("attention.layer_norm_rms_epsilon")))),
        "rope_parameters": {"rope_theta": number("rope.freq_base"), "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **_special_ids(reader),
    }


def _tokenizer_config(reader: _Reader) -> dict[str, Any]:
    tokens = reader.value("tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": reader.value("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[reader.value("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[reader.value("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[reader.value("tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[reader.value("tokenizer.ggml.unknown_token_id")],
    }


def _tokenizer(reader: _Reader) -> dict[str, Any]:
    """`tokenizer.json` as the model's authors published it: digits one by one, then GPT-2's split; nothing is added."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokens = reader.value("tokenizer.ggml.tokens")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_control_tokens(tokens, reader.value("tokenizer.ggml.token_type"))),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in reader.value("tokenizer.ggml.merges")],
        },
    }


def _control_tokens(tokens: list[str], kinds: list[int]) -> Iterator[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _CONTROL_TOKEN:
            yield {"id": token_id, "content": token, **flags}


def _write_weights(reader: _Reader, path: Path, report: Report) -> None:
    """The safetensors format by hand, a tensor at a time: its numpy front end has no bfloat16."""
    heads = {
        "attn_q": reader.value("llama.attention.head_count"),
        "attn_k": reader.value("llama.attention.head_count_kv"),
    }
    header = json.dumps(_weights_header(reader)).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for done, tensor in enumerate(reader.tensors, start=1):
            report("dequantising the weights", done / len(reader.tensors))
            part = tensor.name.split(".")[-2]
            values = _dequantised(tensor)
            file.write(_bfloat16(_split_rotary(values, heads[part]) if part in heads else values))


def _weights_header(reader: _Reader) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in reader.tensors:
        start, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]
        header[_weight_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    return header


def _weight_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    try:
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    except (ValueError, KeyError):
        raise UnsupportedFile(f"the GGUF file holds an unknown tensor {name!r}") from None


def _dequantised(tensor: gguf.ReaderTensor) -> np.ndarray:  # float32 [out, in] or [size]
    kind = tensor.tensor_type.name
    if kind == "F32":
        return np.asarray(tensor.data)
    # The whole tensor at once: `gguf.dequantize` goes 16 rows at a time, which takes three times as long.
    blocks: np.ndarray = getattr(quants, kind).dequantize_rows(tensor.data)
    return blocks


def _split_rotary(weight: np.ndarray, heads: int) -> np.ndarray:  # float32 [heads * head_dim, in]
    """GGUF interleaves a head's rotary pairs; transformers keeps the two halves apart."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _bfloat16(values: np.ndarray) -> bytes:
    """numpy has no bfloat16: the upper half of the float32 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return upper.astype("<u2").tobytes()
