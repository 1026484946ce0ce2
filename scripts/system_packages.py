"""The system's own packages: whether we may install some, how, and what a person would type instead.

Only root installs, only with apt-get or dnf, and never with SYSTEM_PACKAGES=no in the environment. Nothing is
installed silently: the caller gives the reason, and it is said before anything happens. What the package
manager writes is shown when it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

APT_OPTIONS = ("-q", "-o", "DPkg::Lock::Timeout=300")
OUTPUT_LINES = 20


@dataclass(frozen=True)
class Manager:
    """A package manager that this program knows how to use."""

    name: str
    refresh: tuple[str, ...] | None
    """Brings its lists up to date, where it does not do so by itself."""
    install: tuple[str, ...]


MANAGERS = (
    Manager(
        "apt-get",
        ("apt-get", *APT_OPTIONS, "update"),
        ("apt-get", *APT_OPTIONS, "install", "--yes", "--no-install-recommends"),
    ),
    Manager("dnf", None, ("dnf", "--quiet", "install", "--assumeyes", "--setopt=install_weak_deps=False")),
)


def find_manager() -> Manager | None:
    """The package manager of this machine, if it is a known one."""
    return next((manager for manager in MANAGERS if shutil.which(manager.name)), None)


def find_refusal() -> str | None:
    """Why we may not install packages here, or None if we may."""
    if os.environ.get("SYSTEM_PACKAGES") == "no":
        return "SYSTEM_PACKAGES=no"
    if find_manager() is None:
        return f"no {' or '.join(manager.name for manager in MANAGERS)} here"
    if os.geteuid() != 0:
        return "not root"
    return None


def build_advice(packages: Sequence[str]) -> str:
    """What a person types, as root, to get the packages."""
    manager = find_manager()
    if manager is None:
        return f"your system's package manager (Debian calls them {' '.join(packages)})"
    return f"{manager.name} install {' '.join(packages)}"


def install(packages: Sequence[str], *, reason: str) -> list[str]:
    """Install what the machine's package manager has of these; returns those that could not be.

    Only to be called where `find_refusal` gives None.
    """
    manager = find_manager()
    assert manager is not None
    print(f"Installing with {manager.name}, {reason}: {' '.join(packages)}", flush=True)
    if manager.refresh is not None:
        _run(manager.refresh)
    if _run([*manager.install, *packages]):
        return []
    # One that does not exist in this release keeps all the others away.
    return [package for package in packages if not _run([*manager.install, package])]


def _run(command: Sequence[str]) -> bool:
    """Run a package manager's command; whether it went well."""
    done = subprocess.run(
        command,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return True
    print(f"{' '.join(command)} ended with status {done.returncode}:")
    for line in done.stdout.splitlines()[-OUTPUT_LINES:]:
        print(f"  {line}")
    return False
