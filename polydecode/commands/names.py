"""The commands by name, and what each is for."""

from __future__ import annotations

from collections.abc import Mapping

COMMANDS: Mapping[str, str] = {
    "serve": "serve the model over HTTP; also what flags alone do",
    "chat": "talk to the model in this terminal",
    "complete": "continue a text, by any strategy",
    "run-batch": "answer a file of requests in OpenAI's batch format; goes on where it was stopped",
    "bench": "measure servers: what python -m loadtest does",
    "check": "try a plugin in every way in which a server disturbs requests",
    "doctor": "what this machine has, what the engine makes of it, and why",
    "completion": "print a script that completes these words in bash, zsh or fish",
    "config": "the effective settings, and where each came from",
    "default-config": "every setting with its default, as TOML",
}
