"""Starting services, and what they are started with; the configuration's reload."""

from __future__ import annotations

from typing import Any

from busproxy.driver.call import Call, Method, MethodError
from busproxy.driver.outbox import DRIVER_NAME

ALREADY_RUNNING = 2


def _start_service_by_name(call: Call) -> tuple[Any, ...] | None:
    name, _flags = call.arguments
    activation = call.driver.router.activation
    if not activation.offers(name):
        raise MethodError("ServiceUnknown", f"The name {name} was not provided by any .service files")
    if call.driver.router.bus.names.owner(name) is not None:
        return (ALREADY_RUNNING,)
    activation.start_for_caller(call.message, name)
    return None


def _list_activatable_names(call: Call) -> tuple[Any, ...]:
    return ([DRIVER_NAME, *call.driver.router.activation.names()],)


def _update_activation_environment(call: Call) -> tuple[Any, ...]:
    (variables,) = call.arguments
    call.driver.router.activation.update_environment(variables)
    return ()


def _reload_config(call: Call) -> None:
    try:
        call.driver.host.reload()
    except ValueError as error:
        raise MethodError("Failed", str(error)) from error
    # Answered even if no reply is wanted, as dbus-daemon does.
    call.driver.outbox.send_reply(call.peer, call.serial, "", ())


METHODS = (
    Method("StartServiceByName", "su", "u", _start_service_by_name),
    Method("ListActivatableNames", "", "as", _list_activatable_names),
    Method(
        "UpdateActivationEnvironment",
        "a{ss}",
        "",
        _update_activation_environment,
        anywhere=False,
        privileged=True,
    ),
    Method("ReloadConfig", "", "", _reload_config),
)
