"""Which event loop runs the daemon: uvloop where it is installed, asyncio's own otherwise."""

from __future__ import annotations

import asyncio


def new_event_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Make a loop; `kind` is `auto`, `uvloop` or `asyncio`.  Raises ImportError for a missing uvloop."""
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise
        else:
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()
