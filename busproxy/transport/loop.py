"""Which event loop runs the daemon, and how the poller is part of it."""

from __future__ import annotations

import asyncio

from busproxy.transport.poller import LoopSelector, Poller

DEFAULT = "asyncio"
"""Peers are served inside asyncio's selector, which measures faster than any loop around an epoll set."""


def new_event_loop(kind: str) -> tuple[asyncio.AbstractEventLoop, Poller]:
    """Make a loop and its poller; `kind` is `auto`, `uvloop` or `asyncio`.

    Raises ImportError where uvloop is asked for and missing.
    """
    poller = Poller()
    loop: asyncio.AbstractEventLoop
    if kind == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
        poller.nest_in(loop)
    else:
        loop = asyncio.SelectorEventLoop(LoopSelector(poller))
        poller.attach(loop)
    return loop, poller
