"""`kdbusctl make-bus` and `make-endpoint`: something to connect to, for as long as the program runs.

A bus, or a custom endpoint, lives exactly as long as the handle that made it.  So these print the new node's
path when it is there, and then wait until they are interrupted, or what they made goes.
"""

from __future__ import annotations

import grp
import os
import pwd
import select
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from kdbus_core.abi import (
    MAX_BLOOM_SIZE,
    MAX_NODE_NAME_LENGTH,
    MIN_BLOOM_SIZE,
    UNSET_ID,
    AccessLevel,
    AccessType,
    AttachFlag,
    MakeFlag,
)
from kdbus_core.ctl.places import DEFAULT_ENDPOINT, ENDPOINT_PREFIX, Place, Problem, is_socket
from kdbus_core.ctl.show import print_json
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials
from kdbus_core.node import check_own_name
from kdbus_core.policy import Access, PolicyEntry, is_valid_policy_name
from kdbus_core.transport.client import Handle, open_node

ACCESS = {
    "owner": MakeFlag(0),
    "group": MakeFlag.ACCESS_GROUP,
    "world": MakeFlag.ACCESS_GROUP | MakeFlag.ACCESS_WORLD,
}
METADATA = {(flag.name or "").lower(): flag for flag in AttachFlag}
_LOOK_AFTER = 1.0
"""Seconds after which it is looked whether what was made is still there."""


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
    """Make a bus and hold it; raises KdbusError, Problem once it has gone."""
    mask = AttachFlag(0)
    for word in required:
        mask |= METADATA[word]
    _check_name(name)
    if not MIN_BLOOM_SIZE <= bloom.size <= MAX_BLOOM_SIZE or bloom.size % 8 or bloom.n_hash < 1:
        sizes = f"from {MIN_BLOOM_SIZE} to {MAX_BLOOM_SIZE} bytes, a multiple of 8"
        raise Problem(f"filters have {sizes}, and one hash at least")
    with open_node(place.control) as handle:
        handle.make_bus(name, access=ACCESS[access], bloom=bloom, required=mask)
        _hold(handle, place.directory / name / DEFAULT_ENDPOINT, out, as_json=as_json)


def make_endpoint(
    place: Place, bus: str, name: str, out: TextIO, *, access: str, policy: list[PolicyEntry], as_json: bool
) -> None:
    """Make a custom endpoint with a policy and hold it; KdbusError, Problem once the bus has gone."""
    _check_name(name)
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
    # Nothing was asked, so whatever comes is the end.  When what a handle has made goes because of something
    # else, its socket stays open; but then the file is removed.
    while not select.select([handle.fileno()], [], [], _LOOK_AFTER)[0]:
        if not is_socket(node):
            raise Problem("the bus has gone")
    raise Problem("the broker has gone")


def _check_name(name: str) -> None:
    uid = os.geteuid()
    try:
        check_own_name(name, Credentials(uid=uid))
    except KdbusError as error:
        why = f"it begins with {uid}- and has at most {MAX_NODE_NAME_LENGTH} letters, digits, _, - and ."
        raise Problem(f"{name!r} is no name for something of uid {uid}: {why}") from error


def parse_policy(grants: Iterable[tuple[AccessLevel, str]]) -> list[PolicyEntry]:
    """Policy entries of grants written `NAME=WHOM`, WHOM being world, user:… or group:…; Problem."""
    entries: dict[str, list[Access]] = {}
    for level, text in grants:
        name, equals, whom = text.partition("=")
        if not equals:
            raise Problem(f"{text!r} is not NAME=WHOM")
        if not is_valid_policy_name(name):
            raise Problem(f"{name!r} is neither a well-known name nor one ending in .*")
        entries.setdefault(name, []).append(_access(whom, level))
    return [PolicyEntry(name, tuple(accesses)) for name, accesses in entries.items()]


def _access(whom: str, level: AccessLevel) -> Access:
    if whom == "world":
        return Access(AccessType.WORLD, 0, level)
    kind, _, name = whom.partition(":")
    if kind == "user":
        return Access(AccessType.USER, _id(kind, name, lambda: pwd.getpwnam(name).pw_uid), level)
    if kind == "group":
        return Access(AccessType.GROUP, _id(kind, name, lambda: grp.getgrnam(name).gr_gid), level)
    raise Problem(f"{whom!r} is none of world, user:NAME, user:UID, group:NAME, group:GID")


def _id(kind: str, name: str, look_up: Callable[[], int]) -> int:
    try:
        id = int(name) if name.isascii() and name.isdecimal() else look_up()
    except (KeyError, ValueError):  # the latter for what no name can contain
        raise Problem(f"there is no {kind} {name!r}") from None
    if not 0 <= id < UNSET_ID:
        raise Problem(f"{id} is no id of a {kind}")
    return id
