"""What the source must not hold: guards that -O removes, ways for data to become code, another door than HTTP.

An assert may tell mypy what a value is (`x is not None`, `isinstance`), which is so by construction; it checks nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for package in ("server", "decoding")
    for path in (ROOT / package).rglob("*.py")
    if "kernels" not in path.parts  # numba's own asserts there are compiled in
)
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "numpy.load", "np.load", "os.system", "os.popen"}
NAMES = {"CORSMiddleware", "trust_remote_code", "debug"}


def narrows(test: ast.expr) -> bool:
    """Whether an assert only names a type."""
    if isinstance(test, ast.UnaryOp):
        return narrows(test.operand)
    if isinstance(test, ast.Call):
        return ast.unparse(test.func) == "isinstance"
    return isinstance(test, ast.Compare) and ast.unparse(test).endswith(" is not None")


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_guards_nothing_by_assert_and_has_nothing_that_turns_data_into_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            assert narrows(node.test), f"line {node.lineno}: python -O leaves it out"
        assert not MODULES & set(imported(node)), ast.unparse(node)
        if isinstance(node, ast.Call):
            assert called(node) not in CALLS, ast.unparse(node)
            switched_on = {word.arg for word in node.keywords if getattr(word.value, "value", None) is True}
            assert not switched_on & {*NAMES, "shell"}, ast.unparse(node)
        assert getattr(node, "id", None) != "CORSMiddleware"


def test_the_listening_socket_is_made_in_one_place() -> None:
    listening = [path.name for path in FILES if ".listen(" in path.read_text(encoding="utf-8")]
    assert listening == ["server.py"]
