"""org.freedesktop.DBus.Peer: the bus as a program like any other."""

from __future__ import annotations

from typing import Any

from busproxy.driver.call import Call, Method, MethodError


def _ping(call: Call) -> tuple[Any, ...]:
    return ()


def _get_machine_id(call: Call) -> tuple[Any, ...]:
    try:
        return (call.driver.host.machine_id(),)
    except OSError as error:
        raise MethodError("Failed", f"This machine has no id: {error}") from error


METHODS = (
    Method("GetMachineId", "", "s", _get_machine_id),
    Method("Ping", "", "", _ping),
)
