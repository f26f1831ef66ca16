"""A draft model made of the real one: its first layers under its own head. It guesses right often enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def truncated(source: Path, target: Path, num_layers: int) -> Path:
    """The first layers of a Llama directory as a directory of their own."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": num_layers}), encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if _layer(name) < num_layers}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _layer(name: str) -> int:
    """The layer that a weight belongs to; 0 for those outside the layers."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else 0
