"""A draft model made of the real one by leaving out layers: it guesses about every second token."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

LEFT_OUT = range(15, 20)  # of 30; the last ones matter more, and so do the first

_LAYER = re.compile(r"(?<=layers\.)\d+")


def thinned(source: Path, target: Path) -> Path:
    """The Llama in `source` as another directory, without its middle layers."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kept = [layer for layer in range(config["num_hidden_layers"]) if layer not in LEFT_OUT]
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": len(kept)}), encoding="utf-8")
    weights = {}
    for name, weight in load_file(source / "model.safetensors").items():
        layer = _LAYER.search(name)
        if layer is None or int(layer[0]) in kept:
            weights[_LAYER.sub(lambda found: str(kept.index(int(found[0]))), name)] = weight
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target
