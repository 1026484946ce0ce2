"""`busproxyd`: the bus as a process, with dbus-daemon's command line.

`main` is the entry point.  Importing this package costs nothing; the parts
are loaded when they are needed, so that a socket-activated start is quick.
"""

from __future__ import annotations


def main() -> int:
    """Run `busproxyd`; returns the exit status."""
    from busproxy.daemon.run import main as run

    return run()
