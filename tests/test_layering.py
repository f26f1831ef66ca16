"""The import order of the source tree, checked by parsing: a file's place decides what it may know.

The tables below are the order. A new file must be placed in them, or the first test here fails and says so.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from decoding.contract.params import PARAMS

ROOT = Path(__file__).parent.parent
PACKAGES = ("polydecode", "server", "decoding", "loadtest")

# From the bottom up: a folder, or a file beside them, imports from its own layer and from those before it, and never in
# a circle. This is the order of the map, docs/architecture.md.
LAYERS: dict[str, tuple[str, ...]] = {
    "polydecode": (
        "errors interrupt results background_loop grammar_check",
        "runner params",
        "job opening",
        "endpoints retold",
        "llm",
        "commands",
        "__main__",
    ),
    "server": (
        "errors work_queue settings",
        "observe worker",
        "text wire",
        "served",
        "translate queue",
        "http",
        "answer",
        "routes",
        "app startup",
        "service",
        "command",
        "__main__",
    ),
    "decoding": (
        "contract device dtype cache_home",
        "kernels",
        "seam attention",
        "stopping logits sampling topk",
        "gguf model engine strategies",
        "plugin worker",
        "check",
    ),
    "loadtest": (
        "outcome scenario target",
        "side",
        "prompt stream plain statistics process",
        "client run",
        "contender neighbours",
        "compare curve",
        "table",
        "report",
        "soak",
        "options",
        "session",
        "__main__",
        "engine",
        "gpu_accept",
        "peers",
    ),
}

# Same tree, forbidden all the same: (who, whom). Engine, model and strategies stand side by side, and only meet in the
# worker's assembly and in what both sides of the seam are written against.
APART = ("engine", "model", "strategies")
SEPARATED: tuple[tuple[str, str], ...] = (
    *((f"decoding.{one}", f"decoding.{other}") for one in APART for other in APART if one != other),
    ("decoding.attention", "decoding.strategies"),
    ("decoding.strategies", "decoding.attention"),
)
FRAMES_READERS = ("decoding.worker.worker", "decoding.worker.assembly", "decoding.worker.link", "decoding.worker.ticks")

# They drive the engine in their own process: a GPU box may have no server.
ENGINE_BENCHMARKS = ("loadtest.engine", "loadtest.gpu_accept")
# All that server/ may know of decoding/
SHARED_CONTRACTS = "decoding.contract"
SERVER_REFUSES = ("torch", "transformers", "triton", "gguf", "loadtest", "polydecode")
DECODING_REFUSES = ("asyncio", "fastapi", "starlette", "uvicorn", "server", "loadtest", "polydecode")
SIGNPOST = ("decoding", "polydecode")  # `from decoding import LLM` leads there, and nothing else does
DECODING_NEEDS = (
    "numpy",
    "torch",
    "transformers",
    "huggingface_hub",  # transformers stands on it; its errors come through
    "triton",
    "safetensors",
    "gguf",
    "re2",
    "llguidance",  # optional: imported where the first grammar is met
    "tokenizers",  # what a folder without tokenizer.json gets one by
    "numba",  # optional: decoding/kernels alone imports it, and only where it is installed
    "llvmlite",
    "torchao",  # optional: imported where weights are quantised for a GPU
    "decoding",
)  # beside the standard library
DECODING_PROCESS_FILES = (
    "decoding.worker.worker",
    "decoding.contract.frames",
    "decoding.worker.ticks",
    *(f"decoding.worker.kept.{name}" for name in ("container", "description", "opening")),
)


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    imports: frozenset[str]
    typing_only: frozenset[str] = frozenset()  # those of `if TYPE_CHECKING`

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return str(node.module)
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every import of the file, wherever it stands; `from package import module` counts as the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if base.split(".")[0] in PACKAGES and _is_module(inner) else base


def _read(path: Path) -> Module:
    name = _module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    typing_only = {imported for node in guarded for imported in _imported(node, package)}
    return Module(name, frozenset(_imported(tree, package)), frozenset(typing_only))


MODULES = [_read(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _rank(name: str) -> int | None:
    """The layer a module stands in; a package's own `__init__` is below everything."""
    package, _, inner = name.partition(".")
    if not inner:
        return -1
    for rank, layer in enumerate(LAYERS[package]):
        if any(_matches(inner, entry) for entry in layer.split()):
            return rank
    return None


def _own(module: Module) -> Iterator[str]:
    """What the module imports of its own package."""
    return (name for name in module.imports if _matches(name, module.package))


def _violations(modules: list[Module]) -> list[str]:
    return [
        f"{module.name} must not import {name}, which stands above it"
        for module in modules
        for name in _own(module)
        if (_rank(name) or 0) > (_rank(module.name) or 0)
        if not (module.name == module.package and name in module.typing_only)  # a package's face names what is inside
    ]


def test_every_file_has_a_place() -> None:
    homeless = [module.name for module in MODULES if _rank(module.name) is None]
    assert not homeless, (
        f"place {', '.join(homeless)} in LAYERS of {Path(__file__).name}: in the lowest layer above all it imports"
    )


def test_no_file_imports_from_a_layer_above_it() -> None:
    assert not _violations(MODULES)


def test_an_import_against_the_order_is_found() -> None:
    upward = Module("decoding.seam", frozenset({"decoding.engine.engine"}))
    assert _violations([upward]) == ["decoding.seam must not import decoding.engine.engine, which stands above it"]


def test_imports_inside_functions_and_of_submodules_are_read() -> None:
    tree = ast.parse("def f():\n    from decoding.contract import params\nfrom . import errors\nimport torch.nn")
    assert set(_imported(tree, "server")) == {"decoding.contract.params", "server.errors", "torch.nn"}


def test_no_imports_run_in_a_circle() -> None:
    graph = {module.name: set(_own(module)) - module.typing_only - {module.name} for module in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_engine_knows_no_strategy_and_no_strategy_knows_the_engine() -> None:
    found = [
        f"{module.name} must not import {name}"
        for module in MODULES
        for who, whom in SEPARATED
        for name in module.imports
        if _matches(module.name, who) and _matches(name, whom)
    ]
    assert not found


def test_only_the_worker_and_those_who_answer_read_frames() -> None:
    found = [
        m.name
        for m in MODULES
        if m.package not in ("server", "polydecode")
        and m.name not in FRAMES_READERS
        and "decoding.contract.frames" in m.imports
    ]
    assert not found


def test_the_server_knows_of_decoding_only_the_contracts() -> None:
    found = [
        f"{module.name} must not import {name}"
        for module in MODULES
        if module.package == "server"
        for name in module.imports
        if name.split(".")[0] in SERVER_REFUSES or (_matches(name, "decoding") and not _matches(name, SHARED_CONTRACTS))
    ]
    assert not found


def test_decoding_knows_nothing_of_http() -> None:
    found = [
        f"{module.name} must not import {name}"
        for module in MODULES
        if module.package == "decoding"
        for name in module.imports
        if name.split(".")[0] in DECODING_REFUSES and (module.name, name) != SIGNPOST
    ]
    assert not found


def test_decoding_without_its_process_runs_on_a_bare_gpu_box() -> None:
    found = [
        f"{module.name} must not import {name}"
        for module in MODULES
        if module.package == "decoding" and module.name not in DECODING_PROCESS_FILES
        for name in module.imports
        if name.split(".")[0] not in (*sys.stdlib_module_names, *DECODING_NEEDS) and (module.name, name) != SIGNPOST
    ]
    assert not found


def test_the_load_generator_knows_neither_side() -> None:
    found = [
        m.name
        for m in MODULES
        if m.package == "loadtest" and not any(_matches(m.name, folder) for folder in ENGINE_BENCHMARKS)
        if any(n.split(".")[0] in ("server", "decoding", "polydecode") for n in m.imports)
    ]
    assert not found


def test_the_server_process_never_loads_torch() -> None:
    """Parsing sees our own imports only; a library could still bring torch in by itself."""
    names = [module.name for module in MODULES if module.package == "server" and not module.name.endswith("__main__")]
    heavy = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    program = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint({heavy})"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (loaded.returncode, loaded.stdout.strip()) == (0, "[]"), loaded.stderr


NOT_ON_A_GPU_BOX = ("numba", "llvmlite", "re2", "gguf", "msgspec", "fastapi", "pydantic_settings", "structlog", "rich")


def test_the_engine_and_every_strategy_load_on_a_bare_gpu_box() -> None:
    names = ["decoding.engine.engine", "decoding.model.loading", "decoding.strategies", "loadtest.gpu_accept.__main__"]
    program = (
        f"import importlib, sys\nfor name in {NOT_ON_A_GPU_BOX}: sys.modules[name] = None\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "from decoding.kernels import cpu as kernels\n"
        "print(kernels.available(), [name for name in ('polydecode', 'server') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (loaded.returncode, loaded.stdout.strip()) == (0, "False []"), loaded.stderr


STRATEGY_BLIND = sorted(
    path.relative_to(ROOT / "decoding").as_posix()
    for folder in ("engine", "model", "attention", "worker")
    for path in (ROOT / "decoding" / folder).rglob("*.py")
)


def _words(name: str) -> list[str]:
    """group_beam, GroupBeam and "group beam" are the words group, beam."""
    return re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())


def _named(tree: ast.Module) -> Iterator[str]:
    """Every identifier and every string that is not a docstring or some other bare expression."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias | ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def _strategies_named(source: str) -> set[str]:
    """The strategies that code names. (Sampling is also what the batched draw is called.)"""
    names = {name: _words(name) for name in PARAMS if name != "sampling"}
    spoken = [_words(found) for found in _named(ast.parse(source))]
    return {
        name
        for name, words in names.items()
        for said in spoken
        if any(said[i : i + len(words)] == words for i in range(len(said)))
    }


@pytest.mark.parametrize("file", STRATEGY_BLIND)
def test_the_machinery_names_no_strategy(file: str) -> None:
    assert not _strategies_named((ROOT / "decoding" / file).read_text(encoding="utf-8"))


def test_a_strategy_named_in_the_machinery_is_found() -> None:
    assert _strategies_named("if isinstance(request.strategy, GroupBeam): pass") == {"group_beam", "beam"}
    assert _strategies_named("if name == 'sed': pass") == {"sed"}
    assert not _strategies_named("used = based(contrast)\n'beam'")
