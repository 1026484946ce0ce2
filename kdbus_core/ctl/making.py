"""`kdbusctl make-bus` and `make-endpoint`: something to connect to, for as long as the program runs.

A bus, or a custom endpoint, lives exactly as long as the handle that made it.  So these print the new node's
path when it is there, and then wait until they are interrupted or the broker goes.
"""

from __future__ import annotations

import grp
import pwd
import select
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from kdbus_core.abi import AccessLevel, AccessType, AttachFlag, MakeFlag
from kdbus_core.ctl.places import DEFAULT_ENDPOINT, ENDPOINT_PREFIX, Place, Problem
from kdbus_core.ctl.show import print_json
from kdbus_core.domain import Bloom
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.transport.client import Handle, open_node

ACCESS = {
    "owner": MakeFlag(0),
    "group": MakeFlag.ACCESS_GROUP,
    "world": MakeFlag.ACCESS_GROUP | MakeFlag.ACCESS_WORLD,
}
METADATA = {(flag.name or "").lower(): flag for flag in AttachFlag}


def make_bus(
    place: Place,
    name: str,
    out: TextIO,
    *,
    access: str,
    bloom: Bloom,
    required: Iterable[str],
    as_json: bool,
) -> None:
    """Make a bus and hold it; raises KdbusError, Problem once the broker has gone."""
    mask = AttachFlag(0)
    for word in required:
        mask |= METADATA[word]
    with open_node(place.control) as handle:
        handle.make_bus(name, access=ACCESS[access], bloom=bloom, required=mask)
        _hold(handle, place.directory / name / DEFAULT_ENDPOINT, out, as_json=as_json)


def make_endpoint(
    place: Place, bus: str, name: str, out: TextIO, *, access: str, policy: list[PolicyEntry], as_json: bool
) -> None:
    """Make a custom endpoint with a policy and hold it; KdbusError, Problem once the broker has gone."""
    with open_node(place.node(bus)) as handle:
        handle.make_endpoint(name, access=ACCESS[access])
        handle.update_endpoint(policy)
        node = place.directory / bus / f"{ENDPOINT_PREFIX}{name}"
        _hold(handle, node, out, as_json=as_json)


def _hold(handle: Handle, node: Path, out: TextIO, *, as_json: bool) -> None:
    if as_json:
        print_json({"node": str(node)}, out, indent=None)
    else:
        out.write(f"{node}\n")
        out.flush()
    # Nothing was asked, so whatever comes is the end.
    select.select([handle.fileno()], [], [])
    raise Problem("the broker has gone")


def parse_policy(grants: Iterable[tuple[AccessLevel, str]]) -> list[PolicyEntry]:
    """Policy entries of grants written `NAME=WHOM`, WHOM being world, user:… or group:…; Problem."""
    entries: dict[str, list[Access]] = {}
    for level, text in grants:
        name, equals, whom = text.partition("=")
        if not equals:
            raise Problem(f"{text!r} is not NAME=WHOM")
        entries.setdefault(name, []).append(_access(whom, level))
    return [PolicyEntry(name, tuple(accesses)) for name, accesses in entries.items()]


def _access(whom: str, level: AccessLevel) -> Access:
    kind, _, name = whom.partition(":")
    try:
        if kind == "user":
            uid = int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
            return Access(AccessType.USER, uid, level)
        if kind == "group":
            gid = int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
            return Access(AccessType.GROUP, gid, level)
    except KeyError:
        raise Problem(f"there is no {kind} {name}") from None
    if whom != "world":
        raise Problem(f"{whom!r} is none of world, user:NAME or UID, group:NAME or GID")
    return Access(AccessType.WORLD, 0, level)
