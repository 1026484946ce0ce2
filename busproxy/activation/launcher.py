"""How a service's process comes into being.

On a session bus the command of the .service file is executed directly, with
the environment of the daemon, what UpdateActivationEnvironment has added, and
the variables that tell the service which bus started it.  Where a service
helper is configured (a system bus), that program is executed with the
service's name and does the rest, the change of user included.

`launch` returns when the process has ended well; a service may daemonize, so
that is no failure.  Everything else is a `LaunchError`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

from busproxy.activation.service_files import CommandLineError

if TYPE_CHECKING:
    from busproxy.activation.service_files import ServiceFile

_PREFIX = "org.freedesktop.DBus.Error.Spawn."


class LaunchError(Exception):
    """The service could not be started: a D-Bus error name and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = _PREFIX + name
        self.text = text


class Launcher:
    """Executes services; `environment` is what they start with."""

    def __init__(
        self, environment: Mapping[str, str], *, bus_type: str | None, address: str, helper: str | None
    ) -> None:
        self.environment = dict(environment)
        self.environment["DBUS_STARTER_ADDRESS"] = address
        if bus_type is not None:
            self.environment["DBUS_STARTER_BUS_TYPE"] = bus_type
        if bus_type == "session":
            self.environment["DBUS_SESSION_BUS_ADDRESS"] = address
        elif bus_type == "system":
            self.environment["DBUS_SYSTEM_BUS_ADDRESS"] = address
        self._helper = helper

    async def launch(self, service: ServiceFile) -> None:
        """Start a service and wait until its process has ended."""
        if self._helper is not None:
            argv = [self._helper, service.name]
        else:
            try:
                argv = service.argv()
            except CommandLineError as error:
                raise LaunchError("FileInvalid", str(error)) from error
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, env=self.environment
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise LaunchError(
                "ExecFailed", f"Failed to execute program {service.name}: {reason}"
            ) from error
        status = await process.wait()
        if status > 0:
            raise LaunchError("ChildExited", f"Process {service.name} exited with status {status}")
        if status < 0:
            raise LaunchError(
                "ChildSignaled",
                f"Process {service.name} received signal {-status} ({signal.strsignal(-status)})",
            )
