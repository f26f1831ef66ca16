"""instructor: an object out of a chat, by response_format json_schema. URL MODEL."""

from __future__ import annotations

import sys

import instructor
import openai
from pydantic import BaseModel

url, model = sys.argv[1:]


class City(BaseModel):
    name: str


client = instructor.from_openai(
    openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=instructor.Mode.JSON_SCHEMA
)
city = client.chat.completions.create(
    model=model, response_model=City, max_retries=0, temperature=0, max_tokens=64,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
)  # fmt: skip
assert city.name, city
