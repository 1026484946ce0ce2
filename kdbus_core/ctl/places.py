"""Finding one's way in a domain's directory: which domains, buses and endpoints there are, and by which path.

A bus is a directory with a socket `bus` in it, its other endpoints are the sockets `ep.NAME` beside that,
and a domain within a domain is a directory in `domains`.  This is what can be known without any rights.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONTROL = "control"
DOMAINS = "domains"
DEFAULT_ENDPOINT = "bus"
ENDPOINT_PREFIX = "ep."


class Problem(Exception):
    """Why a verb cannot be carried out, for the person who asked."""


@dataclass(frozen=True, slots=True)
class Place:
    """A domain's directory; `name` is how it is called from the outermost one, empty for that itself."""

    directory: Path
    name: str = ""

    @property
    def control(self) -> Path:
        """The node that makes buses and tells about the domain."""
        return self.directory / CONTROL

    def inner(self) -> Iterator[Place]:
        """The domains right in this one, by name."""
        for path in _entries(self.directory / DOMAINS):
            if is_socket(path / CONTROL):
                yield Place(path, f"{self.name}/{path.name}" if self.name else path.name)

    def buses(self) -> list[str]:
        """The buses, by name."""
        return [path.name for path in _entries(self.directory) if is_socket(path / DEFAULT_ENDPOINT)]

    def endpoints(self, bus: str) -> list[str]:
        """The endpoints of a bus: the default one, then the others by name."""
        found = [path.name for path in _entries(self.directory / bus) if is_socket(path)]
        custom = [name.removeprefix(ENDPOINT_PREFIX) for name in found if name.startswith(ENDPOINT_PREFIX)]
        return [DEFAULT_ENDPOINT, *custom]

    def node(self, bus: str, endpoint: str = DEFAULT_ENDPOINT) -> Path:
        """The socket of an endpoint; Problem when there is no such bus or endpoint."""
        if bus not in self.buses():
            raise Problem(f"there is no bus {bus} in {self.directory}")
        name = endpoint if endpoint == DEFAULT_ENDPOINT else f"{ENDPOINT_PREFIX}{endpoint}"
        path = self.directory / bus / name
        if not is_socket(path):
            raise Problem(f"bus {bus} has no endpoint {endpoint}")
        return path

    def resolve(self, words: str | None) -> tuple[str, str]:
        """Bus and endpoint that somebody means by `BUS` or `BUS/ENDPOINT`; nothing means the only bus.

        Problem where that cannot be told.
        """
        if words is not None:
            bus, slash, endpoint = words.partition("/")
            endpoint = endpoint.removeprefix(ENDPOINT_PREFIX) if slash else DEFAULT_ENDPOINT
            self.node(bus, endpoint)
            return bus, endpoint
        buses = self.buses()
        if len(buses) == 1:
            return buses[0], DEFAULT_ENDPOINT
        if not buses:
            raise Problem(f"there is no bus in {self.directory}")
        raise Problem(f"which bus? there are {', '.join(buses)}")


def find_domain(directory: Path, name: str) -> Place:
    """The domain that is called so, as `A/B` for B in A; Problem when it is not there."""
    place = Place(directory)
    for word in filter(None, name.split("/")):
        place = Place(place.directory / DOMAINS / word, f"{place.name}/{word}" if place.name else word)
    if not is_socket(place.control):
        raise Problem(f"there is no domain in {place.directory}: no {CONTROL} node")
    return place


def is_socket(path: Path) -> bool:
    """Whether a node is there; one in a directory that cannot be looked into is not."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
