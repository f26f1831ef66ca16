"""`python -m server.worker.download ID`: fetches a model's safetensors from the Hugging Face hub; prints JSON lines.

A process of its own, so that the server imports no hub client and can end it at any time.
"""

from __future__ import annotations

import json
import sys

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.spm", "merges.txt", "vocab.txt"]


def download(model: str) -> str:
    """The directory that holds it then."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - takes a while to import

    return snapshot_download(model, allow_patterns=PATTERNS)


def main(model: str) -> None:
    print(json.dumps({"stage": f"downloading {model}", "fraction": 0.0}), flush=True)
    try:
        directory = download(model)
    except Exception as error:
        sys.exit(f"polydecode: {model} could not be downloaded: {type(error).__name__}")
    print(json.dumps({"directory": directory}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
