"""Tries chat templates out in a process that may be lost, before the server makes one: `python -m` of this file.

A template may need hours or gigabytes, already to be compiled. The kernel ends the process that needs more than any
template does. JSON comes in, the sources and the special tokens, each by name; what is wrong goes out.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from server.text.chat_template import NAMED, ChatTemplate, Conversation
from server.text.template_files import DEFAULT, read_template, special_tokens, template_sources
from server.worker.model_files import ModelError

SECONDS = 2.0
MEMORY_BYTES = 1 << 30
TOO_MUCH = f"takes more than {SECONDS:g} seconds or {MEMORY_BYTES >> 30} GiB for a short chat"
CHATS = tuple(
    Conversation([{"role": role, "content": "x"} for role in roles])
    for roles in (("user",), ("system", "user", "assistant", "user"))
)


def try_folder(directory: Path) -> None:
    """The templates of a model. Raises ModelError where one is none, or does not come to an end."""
    sources = template_sources(directory)
    if DEFAULT in sources:
        _try("the model's chat template", sources, special_tokens(directory))


def try_file(file: Path) -> None:
    """A template of the operator's. Raises ModelError."""
    _try(f"the chat template {file}", {DEFAULT: read_template(file)}, {})


def _try(what: str, sources: Mapping[str, str], tokens: Mapping[str, str]) -> None:
    own = {name: source for name, source in sources.items() if name in (DEFAULT, *NAMED)}
    done = subprocess.run(
        [sys.executable, "-m", "server.text.template_trial"],
        input=json.dumps([own, dict(tokens)]).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    problem = json.loads(done.stdout) if done.returncode == 0 else TOO_MUCH
    if problem is not None:
        raise ModelError(f"{what} {problem}")


def problem_of(sources: Mapping[str, str], tokens: Mapping[str, str]) -> str | None:
    """What is wrong with the templates, to follow what they are called."""
    try:
        for template in ChatTemplate(sources[DEFAULT], tokens, sources).all:
            for chat in CHATS:
                template.shown(chat)
    except ValueError as error:
        return f"is none: {error}"
    except MemoryError:
        return TOO_MUCH
    except Exception as error:  # of any kind: a template calls what it likes
        return f"fails with {type(error).__name__}"
    return None


def main() -> None:
    sources, tokens = json.load(sys.stdin)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends by itself, and this then or soon
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    problem = problem_of(sources, tokens)
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps(problem))


if __name__ == "__main__":
    main()
