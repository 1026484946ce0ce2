"""`kdbusctl`: looking at a domain, and trying things on its buses, from a shell.

`main` is the entry point; the parts are loaded when it is called.  There is one module for each group of
verbs: `listing` (what there is), `monitor`, `making` (buses and endpoints for as long as the program runs)
and `talk`.
"""

from __future__ import annotations


def main() -> int:
    """Run `kdbusctl`; returns the exit status."""
    from kdbus_core.ctl.command import main as run

    return run()
