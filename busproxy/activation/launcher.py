"""How a service's process comes into being, and how its end is noticed.

On a session bus the command of the .service file is executed directly, with
the environment of the daemon, what UpdateActivationEnvironment has added, and
the variables that tell the service which bus started it.  Where a service
helper is configured (a system bus), that program is executed with the
service's name and does the rest, the change of user included.

A process that ends well is no failure, for a service may daemonize; every
other end is a `LaunchError`.  Services are not ended with the bus.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from busproxy.activation.service_files import CommandLineError

if TYPE_CHECKING:
    import asyncio

    from busproxy.activation.service_files import ServiceFile

_PREFIX = "org.freedesktop.DBus.Error."


class LaunchError(Exception):
    """The service could not be started: a D-Bus error name and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = _PREFIX + name
        self.text = text


class Process:
    """A service's process; owns a descriptor of it until it has ended."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        child: subprocess.Popen[bytes],
        on_failure: Callable[[LaunchError], None],
    ) -> None:
        self._loop = loop
        self._name = name
        self._child = child
        self._on_failure = on_failure
        self._pidfd = os.pidfd_open(child.pid)
        loop.add_reader(self._pidfd, self._on_end)

    def kill(self) -> None:
        """End the process; that is no failure to report."""
        self._on_failure = lambda error: None
        self._child.kill()

    def forget(self) -> None:
        """Stop looking at the process, which goes on."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def _on_end(self) -> None:
        self.forget()
        status = self._child.wait()
        if status > 0:
            error = LaunchError("Spawn.ChildExited", f"Process {self._name} exited with status {status}")
            self._on_failure(error)
        elif status < 0:
            error = LaunchError("Spawn.ChildSignaled", f"Process {self._name} received signal {-status}")
            self._on_failure(error)


class Launcher:
    """Executes services; `environment` and the `fd_limit` (soft, hard) are what they start with."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        bus_type: str | None,
        address: str,
        helper: str | None,
        fd_limit: tuple[int, int],
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
        self._fd_limit = fd_limit

    def _restore_fd_limit(self) -> None:
        """A service starts with the limit that the bus was started with."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self._fd_limit)

    def launch(
        self,
        loop: asyncio.AbstractEventLoop,
        service: ServiceFile,
        on_failure: Callable[[LaunchError], None],
    ) -> Process:
        """Execute a service; raises LaunchError, or calls `on_failure` when its process ends badly."""
        if self._helper is not None:
            argv = [self._helper, service.name]
        else:
            try:
                argv = service.argv()
            except CommandLineError as error:
                raise LaunchError("InvalidArgs", str(error)) from error
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, env=self.environment, preexec_fn=self._restore_fd_limit
            )
        except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise LaunchError(
                "Spawn.ExecFailed", f"Failed to execute program {service.name}: {reason}"
            ) from error
        return Process(loop, service.name, child, on_failure)
