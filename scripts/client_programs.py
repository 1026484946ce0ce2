"""Get the real D-Bus programs that the tests run, or say plainly which tests go without.

Which programs there are, and Debian's packages of them, is the tests' own knowledge (`support.programs`);
Fedora's names for the same are here. Nothing is installed where `system_packages` says we may not. The exit
status is always 0: whether a missing program matters is for the tests to say.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from system_packages import build_advice, find_manager, find_refusal, install

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.programs import PACKAGES, find_program, missing_packages

FEDORA_PACKAGES: dict[str, str | None] = {
    "busctl": "systemd",
    "gdbus": "glib2",
    "dbus-daemon": "dbus-daemon",
    "dbus-send": "dbus-tools",
    "dbus-monitor": "dbus-tools",
    "dbus-test-tool": "dbus-daemon",
    "installed-dbus-tests": None,
    # As a file: releases have it in different packages.
    "qdbus": "/usr/bin/qdbus-qt5",
    "python:dbus": "python3-dbus",
    "python:gi": "python3-gobject-base",
}
"""None: nothing of Fedora puts it where the tests look for it."""


def find_missing() -> dict[str, str | None]:
    """The programs that are not here, with this distribution's packages."""
    find_program.cache_clear()
    missing = missing_packages(sorted(PACKAGES))
    manager = find_manager()
    if manager is not None and manager.name == "dnf":
        return {name: FEDORA_PACKAGES.get(name) for name in missing}
    return dict(missing)


def list_packages(missing: dict[str, str | None]) -> list[str]:
    """The packages to install for the missing programs."""
    return sorted({package for package in missing.values() if package is not None})


def main() -> int:
    """Install what is missing where we may; say what is still missing."""
    missing = find_missing()
    packages = list_packages(missing)
    refusal = find_refusal() if packages else None
    if packages and refusal is None:
        install(packages, reason=f"because tests run these programs ({', '.join(missing)})")
        missing = find_missing()
        packages = list_packages(missing)
    if missing:
        consequence = "fail, as CI=true" if os.environ.get("CI") == "true" else "are skipped"
        print(f"Not here: {', '.join(missing)}. The tests that need them {consequence}.")
        if packages:
            why = f" (not done here: {refusal})" if refusal else ""
            print(f"To get them{why}: {build_advice(packages)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
