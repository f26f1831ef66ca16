"""Request bodies that /openapi.json shows. Each is answered with 200 by any model with a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Examples = Mapping[str, dict[str, Any]]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 40}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": CITY},
}

COMPLETIONS: Examples = {
    "greedy": {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
    "a stream of two samples": {"prompt": "Once upon a time", "max_tokens": 32, "n": 2, "stream": True, "seed": 7},
    "beam search": {"prompt": "The capital of France is", "max_tokens": 8, "num_beams": 4},
    "log-probs of a prompt": {"prompt": "The capital of France is Paris", "max_tokens": 0, "echo": True, "logprobs": 1},
    "one of several texts": {
        "prompt": "Is water wet? Answer:", "max_tokens": 8, "structured": {"choice": [" yes", " no"]},
    },
}  # fmt: skip
CHAT: Examples = {
    "a question": {"messages": QUESTION, "max_tokens": 32, "temperature": 0.5},
    "the best of four, streamed": {"messages": QUESTION, "max_tokens": 32, "best_of": 4, "stream": True},
    "a function that must be called": {
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_tokens": 64,
    },
    "the result of a call": {
        "messages": [
            {"role": "user", "content": "What is the weather in Paris?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        "tools": [WEATHER],
        "max_tokens": 32,
    },
    "JSON that meets a schema": {
        "messages": QUESTION,
        "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}},
        "max_tokens": 32,
    },
}
TOKENIZE: Examples = {
    "a text": {"prompt": "The capital of France is"},
    "a chat": {"messages": QUESTION, "add_generation_prompt": True, "return_token_strs": True},
}
DETOKENIZE: Examples = {"three tokens": {"tokens": [3, 4, 5]}}
EMBEDDINGS: Examples = {
    "two texts": {"input": ["The sea is calm.", "Stocks fell."]},
    "base64": {"input": "The sea is calm.", "encoding_format": "base64"},
}
RESPONSES: Examples = {
    "a question": {"input": "What is the capital of France?", "max_output_tokens": 32},
    "a stream with instructions": {
        "instructions": "Answer briefly.", "input": QUESTION, "max_output_tokens": 32, "stream": True,
    },
    "JSON": {
        "input": "Name a city.",
        "text": {"format": {"type": "json_schema", "name": "city", "schema": CITY}},
        "max_output_tokens": 64,
    },
}  # fmt: skip
