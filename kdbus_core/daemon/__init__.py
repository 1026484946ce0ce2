"""`kdbusd`: a domain as a process, and its nodes as a directory of sockets.

`main` is the entry point; the parts are loaded when it is called.
"""

from __future__ import annotations


def main() -> int:
    """Run `kdbusd`; returns the exit status."""
    from kdbus_core.daemon.run import main as run

    return run()
