"""The floors that security advisories set, in pyproject.toml (what users get) and in the locks (what we run)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")

# The last version known to be bad; nothing at or below it may be installed.
BAD = {"starlette": "1.3.0", "h11": "0.15", "torch": "2.10"}


def _declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return {requirement.name: requirement for group in groups for requirement in map(Requirement, group)}


def _locked(lock: str) -> list[Requirement]:
    return [Requirement(line) for line in (ROOT / lock).read_text().splitlines()]


@pytest.mark.parametrize(("package", "bad"), BAD.items())
def test_pyproject_refuses_what_an_advisory_names(package: str, bad: str) -> None:
    assert not _declared()[package].specifier.contains(bad)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize(("package", "bad"), BAD.items())
def test_the_locks_hold_nothing_an_advisory_names(package: str, bad: str, lock: str) -> None:
    pins = [requirement for requirement in _locked(lock) if requirement.name == package]
    assert pins
    assert all(Version(spec.version) > Version(bad) for pin in pins for spec in pin.specifier)


@pytest.mark.parametrize("lock", LOCKS)
def test_the_locks_pin_exactly_and_bring_no_cuda(lock: str) -> None:
    pins = _locked(lock)
    assert all(len(pin.specifier) == 1 and next(iter(pin.specifier)).operator == "==" for pin in pins)
    assert not [pin.name for pin in pins if pin.name.startswith(("nvidia", "cuda", "triton"))]


def test_the_tests_triton_is_pinned_where_it_can_be_installed() -> None:
    """Apart from the locks: a torch with CUDA pins a triton of its own."""
    (pin,) = _locked("requirements-triton.lock")
    assert _declared()["triton"].specifier.contains(next(iter(pin.specifier)).version)
    assert str(pin.marker) == str(_declared()["triton"].marker)


def test_the_locks_satisfy_pyproject() -> None:
    """`make lock` was not forgotten after a dependency changed."""
    versions = {pin.name: next(iter(pin.specifier)).version for pin in _locked("requirements-dev.lock")}
    wanted = [
        r for r in _declared().values() if r.name not in ("polydecode", "polydecode-smollm2", "triton", "torchao")
    ]
    assert not [r.name for r in wanted if r.name not in versions or not r.specifier.contains(versions[r.name])]


def test_both_locks_agree() -> None:
    assert set(map(str, _locked("requirements.lock"))) <= set(map(str, _locked("requirements-dev.lock")))
