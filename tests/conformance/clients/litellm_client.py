"""litellm: a chat, plain and streamed, a completion and embeddings. URL MODEL."""

from __future__ import annotations

import sys

import litellm

url, model = sys.argv[1:]
place = {"api_base": f"{url}/v1", "api_key": "none", "num_retries": 0}
chat = {
    "model": f"openai/{model}", "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0, "max_tokens": 8, **place,
}  # fmt: skip
plain = litellm.completion(**chat)
text = plain.choices[0].message.content
assert "Paris" in text, text
assert plain.usage.completion_tokens == 8, plain.usage
chunks = list(litellm.completion(**chat, stream=True))
assert len(chunks) > 3, chunks
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
prompt = {"model": f"text-completion-openai/{model}", "prompt": "The capital of France is", **place}
assert "Paris" in litellm.text_completion(**prompt, temperature=0, max_tokens=4).choices[0].text
embedded = litellm.embedding(model=f"openai/{model}", input=["a", "b"], **place)
assert [round(sum(x * x for x in item["embedding"]), 4) for item in embedded.data] == [1.0, 1.0]
