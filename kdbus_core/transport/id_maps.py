"""The maps of user namespaces as /proc shows them, and what they say of a namespace that cannot be looked at.

Which user namespace a process lives in is told only to those who might trace
it.  Its maps are told to everybody, as the ids of whoever reads them; a
namespace that reads its own is shown the ids of its parent instead.  From the
maps alone follows what ids are in there, wherever it is, and sometimes more:

- an id outside that our own namespace does not have can only have been shown
  because the process lives in our own;
- otherwise what is shown are ids of ours.  A run of them that lies within one
  extent of our own is the same run in the kernel's ids, so the maps translate
  ours into theirs.  With the same map as ours, ids mean the same in there if
  that map changes none;
- anything else (a run that goes on outside of ours, ids that ours lacks) is
  of a namespace beside or around ours, of which nothing certain can be said.

Where it lies is not known then, so nobody can say which capabilities count in
there: such a `UserNamespace` has no parent and is not the initial one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from kdbus_core.abi import UNSET_ID
from kdbus_core.namespaces import Extent

Map = tuple[Extent, ...]


class IdMaps(NamedTuple):
    """uid_map and gid_map of one process."""

    uids: Map
    gids: Map


def parse_map(data: bytes) -> Map:
    """The content of a uid_map or gid_map; `outside` is UNSET_ID for what has no ids here."""
    return tuple(Extent(*map(int, line.split())) for line in data.splitlines())


def mapped(extents: Iterable[Extent]) -> Map:
    """A map without what has no ids in the reader's namespace."""
    return tuple(extent for extent in extents if extent.outside != UNSET_ID)


def seen_from(from_initial: Callable[[int], int | None], extents: Iterable[Extent]) -> Map:
    """A map into the initial namespace, as one into the parent; an extent lies within one of the parent's."""
    return tuple(
        Extent(extent.inside, outside, extent.count)
        for extent in extents
        if (outside := from_initial(extent.outside)) is not None
    )


def are_surely_own(theirs: IdMaps, own: IdMaps) -> bool:
    """Whether maps that were read here can only be those of our own namespace."""
    return theirs == own and any(
        not _has(one, extent.outside) for one in own for extent in one if extent.outside != UNSET_ID
    )


def translate(theirs: IdMaps, own: IdMaps) -> bool:
    """Whether maps that were read here surely are between ids of ours and theirs."""
    if theirs == own:
        return all(extent.inside == extent.outside for one in own for extent in one)
    return all(
        any(_contains(outer, extent) for outer in ours)
        for ours, one in zip(own, theirs, strict=True)
        for extent in one
    )


def _has(map: Map, id: int) -> bool:
    return any(extent.inside <= id < extent.inside + extent.count for extent in map)


def _contains(ours: Extent, theirs: Extent) -> bool:
    return ours.inside <= theirs.outside and theirs.outside + theirs.count <= ours.inside + ours.count
