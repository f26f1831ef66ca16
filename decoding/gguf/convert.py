"""Turns a GGUF file into a Hugging Face directory: configuration, tokenizer, chat template and dequantised weights.

transformers can load GGUF too, but takes fifteen times as long, wants accelerate, and builds tokenizers that cut texts
in other places than their authors' (SmolLM2's digits). It knows nothing of caches and packages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from decoding.gguf.architecture import config_of, places
from decoding.gguf.reader import Reader, read
from decoding.gguf.tokenizer import special_ids, tokenizer_config, tokenizer_json, vocabulary_of
from decoding.gguf.weights import Report, Weight, dtype_of, weights_of, write_weights

TEMPLATES = {
    "chat_template": "chat_template",
    "chat_template.tool_use": "additional_chat_templates/tool_use",
    "chat_template.rag": "additional_chat_templates/rag",
}


def convert(path: Path, directory: Path, report: Report) -> None:
    """Write config, tokenizer and weights into the existing `directory`. Raises UnsupportedFile, OSError."""
    report("reading the GGUF file", 0.0)
    reader = read(path)
    weights = weights_of(reader, places(reader, config_of(reader)))
    report("reading the GGUF file", 1.0)
    for name, content in _documents(reader, weights).items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    _write_templates(reader, directory)
    write_weights(weights, directory / "model.safetensors", report)


def _write_templates(reader: Reader, directory: Path) -> None:
    """Where transformers looks for them: the default one, and beside it those for tools and for documents."""
    for key, place in TEMPLATES.items():
        template = reader.value_or(f"tokenizer.{key}", None)
        if template is not None:
            (directory / place).parent.mkdir(exist_ok=True)
            (directory / f"{place}.jinja").write_text(template, encoding="utf-8")


def _documents(reader: Reader, weights: list[Weight]) -> dict[str, dict[str, Any]]:
    config = config_of(reader)
    vocabulary = vocabulary_of(reader, config["vocab_size"])
    special = special_ids(vocabulary)
    return {
        "config.json": config | {"dtype": dtype_of(weights)} | special,
        "generation_config.json": special,
        "tokenizer.json": tokenizer_json(reader, vocabulary),
        "tokenizer_config.json": tokenizer_config(vocabulary, config["max_position_embeddings"]),
    }
