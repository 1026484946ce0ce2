"""What the driver asks of the daemon around it."""

from __future__ import annotations

from typing import Protocol

from busproxy.transport.fds import FdSet


class Host(Protocol):
    """The daemon, as far as methods of the driver reach beyond the bus."""

    @property
    def guid(self) -> str:
        """The bus' own id: 32 lower-case hexadecimal digits."""

    @property
    def pid(self) -> int: ...

    @property
    def uid(self) -> int: ...

    @property
    def pidfd(self) -> FdSet | None:
        """A descriptor of the daemon's own process; the host stays its holder."""

    def machine_id(self) -> str:
        """The machine's id: 32 lower-case hexadecimal digits."""

    @property
    def has_selinux(self) -> bool:
        """Whether security labels are SELinux contexts here."""

    def reload(self) -> None:
        """Read the configuration again; raises ValueError with what is wrong with it."""
