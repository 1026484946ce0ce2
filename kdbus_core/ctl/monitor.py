"""`kdbusctl monitor`: everything that is said on a bus, as it is said.

Only owners of the bus may.  A monitor is not a connection to the others: they neither see it nor wait for it,
and what it is too slow for is lost for it and counted.
"""

from __future__ import annotations

import os
from errno import EPERM
from pathlib import Path
from typing import TextIO

from kdbus_core.abi import ATTACH_ALL, HelloFlag
from kdbus_core.ctl.messages import message_line, message_record
from kdbus_core.ctl.places import Problem
from kdbus_core.ctl.show import print_json
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client import Connection, open_node

_POOL = 64 << 20
_JSON_PAYLOAD = 64 * 1024


def monitor(node: Path, out: TextIO, *, as_json: bool, count: int | None) -> None:
    """Print messages until so many were printed, or the broker goes (KdbusError), or we are interrupted.

    The first line says that it has begun.  Problem for whoever may not.
    """
    try:
        with open_node(node) as handle:
            connection = handle.hello(
                flags=HelloFlag.MONITOR, attach_recv=ATTACH_ALL, pool_size=_POOL, description="kdbusctl"
            )
    except KdbusError as error:
        if error.errno != EPERM:
            raise
        raise Problem(f"uid {os.geteuid()} does not own this bus, and only owners monitor it") from error
    with connection:
        if as_json:
            print_json({"kind": "monitoring", "node": str(node), "id": connection.id}, out, indent=None)
        else:
            out.write(f"monitoring {node}\n")
            out.flush()
        _print_all(connection, out, as_json=as_json, count=count)


def _print_all(connection: Connection, out: TextIO, *, as_json: bool, count: int | None) -> None:
    while count is None or count > 0:
        message = connection.receive()
        if message is None:
            connection.wait()
            continue
        with message:
            if as_json:
                print_json(message_record(message, limit=_JSON_PAYLOAD), out, indent=None)
            else:
                out.write(message_line(message) + "\n")
                out.flush()
        if count is not None:
            count -= 1
