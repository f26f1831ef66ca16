"""`polydecode completion bash|zsh|fish`: a script that completes the commands' names and flags.

    eval "$(polydecode completion bash)"        polydecode completion fish | source

It holds all words itself: nothing of polydecode is started when Tab is pressed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from polydecode.commands.flags import NoFields, flags_of, settings_flags
from polydecode.commands.names import COMMANDS
from server.settings.settings import CommandLine
from server.wire.base import Wire
from server.wire.requests import ChatRequest, CompletionFields

SHELLS = ("bash", "zsh", "fish")
BENCH = ("list", "run", "compare", "table", "curve", "soak", "neighbours")

_BASH = """\
_polydecode() {{
  local words
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="{serve}" ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands} $words"; fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _polydecode polydecode
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "polydecode completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=SHELLS)
    print(script(parser.parse_args(arguments).shell), end="")
    return 0


def script(shell: str) -> str:
    if shell == "fish":
        return _fish(words_of())
    bash = _bash(words_of())
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash


def words_of() -> Mapping[str, Sequence[str]]:
    """Command -> what can follow it."""
    serve = [f"--{name.replace('_', '-')}" for name in CommandLine.model_fields]
    own = settings_flags()
    return {
        "serve": serve,
        "chat": ["--system", *_flags(ChatRequest), *own],
        "complete": ["--json", *_flags(CompletionFields), *own],
        "run-batch": [*_flags(NoFields), *own],
        "bench": BENCH,
        "doctor": ["--json", *own],
        "completion": SHELLS,
        "check": [],
        "config": serve,
        "default-config": [],
    }


def _flags(wire: type[Wire]) -> list[str]:
    return [f"--{flag.name}" for flag in flags_of(wire)]


def _bash(words: Mapping[str, Sequence[str]]) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(follow)}" ;;' for name, follow in words.items())
    return _BASH.format(cases=cases, commands=" ".join(COMMANDS), serve=" ".join(words["serve"]))


def _fish(words: Mapping[str, Sequence[str]]) -> str:
    first = "__fish_use_subcommand"
    lines = [f"complete -c polydecode -n {first} -a {name} -d '{text}'" for name, text in COMMANDS.items()]
    for name, follow in words.items():
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        for word in follow:
            told = f"-l {word.removeprefix('--')}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c polydecode {condition} {told}")
    return "\n".join(lines) + "\n"
