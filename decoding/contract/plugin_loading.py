"""Finds the plugins that the operator names: a file, an entry point of the group polydecode.plugins, or a module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from decoding.contract.plugins import Plugin, PluginError, Plugins

GROUP = "polydecode.plugins"


def load_plugins(names: Sequence[str], refused: Sequence[str] = ()) -> Plugins:
    """Each as its file or module defines it. refused: modules that none may import.

    Raises PluginError, which says what is wrong with which.
    """
    found = []
    for name in dict.fromkeys(names):
        plugin = _load(name)
        for module in refused:
            if module in sys.modules:
                reason = f"it imports {module} where the server reads it: import it inside the method that uses it"
                raise PluginError(f"plugin {name}: {reason}")
        found.append(plugin)
    return Plugins(tuple(found))


def _load(name: str) -> Plugin:
    try:
        found = _from_file(Path(name)) if name.endswith(".py") else _from_module(name)
    except Exception as error:
        raise PluginError(f"plugin {name}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Plugin):
        raise PluginError(f"plugin {name}: its PLUGIN is no Plugin")
    return found


def _from_file(path: Path) -> Any:
    """Under a name of its own among the modules, where its classes look for what their annotations name."""
    name = f"polydecode_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return _plugin_of(module)


def _from_module(name: str) -> Any:
    entries = metadata.entry_points(group=GROUP, name=name)
    found = next(iter(entries)).load() if entries else importlib.import_module(name)
    return found if isinstance(found, Plugin) else _plugin_of(found)


def _plugin_of(module: Any) -> Any:
    if not hasattr(module, "PLUGIN"):
        raise AttributeError("it has no PLUGIN")
    return module.PLUGIN
