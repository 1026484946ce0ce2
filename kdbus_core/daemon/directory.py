"""Where a domain's directory is when nobody says; kdbusd and kdbusctl have to agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SYSTEM_DIRECTORY = Path("/run/kdbus")


def default_directory(environ: Mapping[str, str], uid: int) -> Path | None:
    """The directory of a uid's domain: KDBUS_DIRECTORY, else root's or one in the user's runtime directory.

    None for a user without a runtime directory.
    """
    if chosen := environ.get("KDBUS_DIRECTORY"):
        return Path(chosen)
    if uid == 0:
        return SYSTEM_DIRECTORY
    runtime = environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "kdbus" if runtime else None
