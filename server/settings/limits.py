"""How much one request may ask for: filled from the settings, shown by /v1/strategies, checked before the queue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """A body's values are all that it holds, its parts those of them that are no numbers or constants, and names.
    Rows are the sequences of one prompt (n, best_of); max_request_rows counts them over all prompts of a request.

    Characters are Unicode code points; max_param_chars bounds a prompt among the parameters (negative_prompt and the
    like). `body_limit.py` holds a body to max_body_bytes before anything is parsed. send_seconds: how long a client may
    leave one piece of a stream unread. allow_priority: whether a request may go before others, or behind them.
    """

    max_body_bytes: int = 8 << 20
    max_body_values: int = 1 << 20
    max_body_parts: int = 1 << 17
    max_rows: int = 64
    max_request_rows: int = 256
    max_messages: int = 2048
    max_tools: int = 128
    max_stop: int = 16
    max_stop_chars: int = 256
    max_stop_token_ids: int = 1024
    max_tokenize_tokens: int = 1 << 17
    max_logprobs: int = 20
    max_temperature: float = 10.0
    max_logit_bias: int = 1024
    max_allowed_token_ids: int = 8192
    max_cache_salt_chars: int = 256
    max_bad_words: int = 256
    max_bad_word_chars: int = 256
    max_param_chars: int = 65536
    max_regex_chars: int = 512
    max_schema_bytes: int = 65536
    max_schema_depth: int = 64
    max_grammar_chars: int = 65536
    max_choices: int = 1024
    send_seconds: float = 30.0
    allow_priority: bool = False
