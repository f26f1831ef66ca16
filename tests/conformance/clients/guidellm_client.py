"""guidellm to its end: 12 requests of 64 prompt and 16 output tokens, 4 at a time. URL MODEL TOKENIZER OUTPUT."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

url, model, tokenizer, output = sys.argv[1:]
command = [
    str(Path(sys.executable).parent / "guidellm"), "run", "--disable-console", "--profile", "kind=concurrent,streams=4",
    "--backend", f"kind=openai_http,target={url},model={model}", "--constraint", "kind=max_requests,count=12",
    "--tokenizer", f"kind=hf_auto,model={tokenizer}", "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
    "--output", f"kind=json,path={output}",
]  # fmt: skip
sys.exit(subprocess.run(command, check=False).returncode)
