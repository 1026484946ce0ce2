"""Which event loop runs kdbusd; the one module of the broker that knows uvloop."""

from __future__ import annotations

import asyncio

KINDS = ("asyncio", "uvloop")


def new_event_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Make a loop of one of the `KINDS`; ImportError where uvloop is asked for and missing."""
    if kind == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.SelectorEventLoop()
