"""Modules are imported alone in fresh interpreters: no cycles, no optional package, no heavy start.

A module that can only be imported after another one is part of a cycle, and which program trips over it
depends on the order of its imports. What must not be there is blocked, not looked for: an import of it fails
as it does where it is not installed. Warnings at import are errors.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("busproxy", "kdbus_core")
OPTIONAL = ("uvloop", "dbus_next")


def find_modules(package: str) -> list[str]:
    """The dotted names of all modules of a package, without those that run when they are imported."""
    names = []
    for file in sorted((REPOSITORY / package).rglob("*.py")):
        parts = file.relative_to(REPOSITORY).with_suffix("").parts
        if parts[-1] == "__main__":
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def run_fresh(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter that sees this checkout; gives its output, fails with its error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-P", "-c", code, *arguments],
        env={"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORT = """\
import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))
for module in sys.argv[2:]:
    importlib.import_module(module)
print(*sorted(sys.modules))
"""


def import_fresh(*modules: str, blocked: Sequence[str] = ()) -> set[str]:
    """Import modules in a fresh interpreter; gives the names of everything that came with them."""
    return set(run_fresh(IMPORT, " ".join(blocked), *modules).split())


@pytest.mark.parametrize("module", [name for package in PACKAGES for name in find_modules(package)])
def test_a_module_can_be_imported_alone(module: str) -> None:
    assert module in import_fresh(module)


def test_the_daemons_modules_need_nothing_optional() -> None:
    modules = [
        name
        for package in PACKAGES
        for name in find_modules(package)
        if name != "busproxy.cli" and not name.startswith("busproxy.cli.")
    ]
    assert import_fresh(*modules, blocked=OPTIONAL).issuperset(modules)


def test_a_blocked_package_cannot_be_imported() -> None:
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        import_fresh("decimal", blocked=["_decimal", "_pydecimal"])


@pytest.mark.parametrize("module", ["busproxy", "busproxy.cli", "busproxy.cli.run", "busproxy.options"])
def test_starting_up_does_not_load_the_event_loop(module: str) -> None:
    assert import_fresh(module).isdisjoint({"asyncio", *OPTIONAL})


def test_the_broker_comes_without_the_proxy() -> None:
    loaded = import_fresh(*find_modules("kdbus_core"))
    assert not {name for name in loaded if name.partition(".")[0] == "busproxy"}
