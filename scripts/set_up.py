"""Make `.venv` ready for running (`run`), for testing (`test`) or for fuzzing (`fuzz`) this checkout.

The package is installed in place, so changes to its code need no new set-up. What was installed is written
into a stamp inside the environment: the checkout's path, which installed programs carry in their first line;
a digest of pyproject.toml; and the extras. As long as the stamp fits there is nothing to do, which is quick.
An environment that was made elsewhere, or with another Python than the one PYTHON asks for, is made anew.

uvloop, and for fuzzing atheris, are wanted but not needed: where one can be neither downloaded nor compiled
the set-up goes on without it, and the stamp keeps later runs from trying again.

Runs on any Python from 3.11 with the standard library alone, as on a machine where nothing was prepared.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from system_packages import build_advice, find_manager, find_refusal, install

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "set-up.json"
PROJECT = ROOT / "pyproject.toml"
EXTRAS = {"run": (), "test": ("test",), "fuzz": ("test",)}
"""What each purpose needs beside the package itself; a later one includes the earlier."""
WANTED = {"run": ("uvloop",), "test": ("uvloop",), "fuzz": ("uvloop", "fuzz")}
"""The extras each purpose can do without."""

IDENTITY = "import sys; print(sys.base_prefix, sys.version)"
PIP = (str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install")


class SetUpError(Exception):
    """The environment cannot be made ready; the text says why and what to do."""


def main(arguments: Sequence[str]) -> int:
    """Make the environment ready for the purpose named; returns the exit status."""
    purpose = arguments[0] if len(arguments) == 1 else ""
    if purpose not in EXTRAS:
        print(f"usage: set_up.py {'|'.join(EXTRAS)}", file=sys.stderr)
        return 2
    try:
        set_up(EXTRAS[purpose], WANTED[purpose])
    except SetUpError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    return 0


def set_up(needed: Sequence[str], wanted: Sequence[str]) -> None:
    """Bring the environment to the state the stamp describes; raises SetUpError."""
    stamp = read_stamp()
    if not is_usable(stamp):
        stamp = {}
        make_environment()
    digest = hashlib.sha256(PROJECT.read_bytes()).hexdigest()
    is_current = stamp.get("digest") == digest
    had: set[str] = set(stamp.get("extras", ()))
    tried: set[str] = set(stamp.get("tried", ())) if is_current else set()
    if is_current and had.issuperset(needed) and tried.issuperset(wanted):
        return
    extras = sorted(had.union(needed))
    STAMP.unlink(missing_ok=True)
    if not is_current or not had.issuperset(needed):
        install_package(extras)
    for extra in wanted:
        if extra not in tried:
            install_if_possible(extra)
    tried.update(wanted)
    STAMP.write_text(
        json.dumps({"root": str(ROOT), "digest": digest, "extras": extras, "tried": sorted(tried)}) + "\n"
    )


def read_stamp() -> dict[str, Any]:
    """What the last completed set-up wrote; empty if there was none."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_usable(stamp: dict[str, Any]) -> bool:
    """Whether the environment works, belongs to this place, and is of the Python that was asked for."""
    if stamp.get("root", str(ROOT)) != str(ROOT) or not (VENV / "bin" / "pip").exists():
        return False
    found = ask(VENV_PYTHON)
    return bool(found) and (not os.environ.get("PYTHON") or found == ask(Path(sys.executable)))


def ask(python: Path) -> str:
    """Which Python this is: where it is at home, and its version; empty if it does not run."""
    try:
        done = subprocess.run(
            [python, "-c", IDENTITY], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def make_environment() -> None:
    """Make an empty environment, in place of one that cannot be used."""
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        get_venv_module()
    # The environment's own Python, which may run this, is a link that is about to go.
    python = os.path.realpath(sys.executable)
    print(f"Making .venv with Python {sys.version.split()[0]}", flush=True)
    if VENV.is_symlink() or VENV.is_file():
        raise SetUpError(f"{VENV} is in the way: it is no directory")
    shutil.rmtree(VENV, ignore_errors=True)
    run([python, "-m", "venv", str(VENV)], f"cannot make {VENV}")


def get_venv_module() -> None:
    """Install what Debian leaves out of its Python; raises SetUpError where that is not possible."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lack = f"Python {version} ({sys.executable}) cannot make environments: it lacks venv or ensurepip."
    manager = find_manager()
    if manager is None or manager.name != "apt-get" or sys.base_prefix != "/usr":
        raise SetUpError(f"{lack} Name one that can: make … PYTHON=/path/to/python3")
    package = f"python{version}-venv"
    if refusal := find_refusal():
        raise SetUpError(f"{lack} To get it (not done here: {refusal}): {build_advice([package])}")
    if install([package], reason="because Python needs it to make environments"):
        raise SetUpError(f"{lack} {package} could not be installed.")


def install_package(extras: Sequence[str]) -> None:
    """Install this checkout in place, with what it needs."""
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    what = "busproxy and what its tests need" if "test" in extras else "busproxy and what it needs"
    print(f"Installing {what} into .venv", flush=True)
    run([*PIP, "--editable", target], "pip could not install it")


def install_if_possible(extra: str) -> None:
    """Install an extra that is wanted, or say why it is missing."""
    requirements = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][extra]
    command = [*PIP, "--prefer-binary", *requirements]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with status {done.returncode}"
        print(f"Going on without {', '.join(requirements)}, which is not needed ({reason})", flush=True)


def run(command: Sequence[str], failure: str) -> None:
    """Run a command that has to succeed; raises SetUpError."""
    if status := subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
        raise SetUpError(f"{failure} (status {status}, see above)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
