"""The `polydecode` command: finds the one that is meant. Without a name it serves.

It imports none but that one: the server starts its worker before anything else is loaded.
"""

from __future__ import annotations

import importlib
import sys

from polydecode.commands.names import COMMANDS

OF_THE_SERVER = ("serve", "config", "default-config")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 for a failure, 2 for what cannot be asked, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    if name in COMMANDS and name not in OF_THE_SERVER:
        module = importlib.import_module(f"polydecode.commands.{name.replace('-', '_')}")
        return int(module.main(arguments[1:]))
    if name in ("help", "-h", "--help"):
        print(overview())
        return 0
    from server.__main__ import main as server  # noqa: PLC0415

    return server(arguments)


def overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(["usage: polydecode COMMAND [--help | …]", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
