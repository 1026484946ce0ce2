"""Packets of the native protocol: one command goes out, one answer comes back.

A node is a SOCK_SEQPACKET socket, so a packet arrives whole or not at all.  A request is a header and a
body; the body *is* the caller's memory: the struct of the command lies at address 0 and every address in
it is an offset into the body.  What the broker writes into that memory comes back in the answer as
patches.  Descriptors travel with the packet; a number in a command, or one that the broker installed, is
an index into those of its packet.

Everything is in the machine's byte order: both ends are on one machine.  `docs/native-protocol.md` says
all of it, for clients in other languages too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import NamedTuple

REQUEST = Struct("=3Q")
"""Number of the command, id of the request, flags; the body follows."""
OFFSET = Struct("=Q")
"""What is between header and body with FREEING."""
ANSWER = Struct("=QII")
"""Id of the request, errno (0: success), number of patches; the patches follow."""
PATCH = Struct("=2Q")
"""Address and length; that many bytes follow, padded to 8."""
_ONE_PATCH = Struct("=QII2Q")
"""An answer with one patch, up to its bytes."""

CARRIED = 1
"""Flag of a request: the last descriptor is a memfd whose content continues the body."""
QUIET = 2
"""Flag of a request: a success that brings no descriptors is not answered."""
FREEING = 4
"""Flag of a request: the first eight bytes after the header are the offset of a slice to free before it."""
KNOWN_FLAGS = CARRIED | QUIET | FREEING

REFUSED = (1 << 64) - 1
"""Id of an answer to the handle itself: it could not be opened, or a packet was none. The end follows."""

INSPECT = 0x801095F0
"""Request of the transport: the state of a domain as JSON, in a memfd."""

MAX_FDS = 253
"""Descriptors of one packet: as many as the kernel passes."""
MAX_INLINE = 64 * 1024
"""Bytes of a body that the library sends in the packet; a longer one is carried."""
MAX_PACKET = 256 * 1024
"""Bytes of a packet, header included, that are received."""
MAX_CARRIED = 4 * 1024 * 1024 + MAX_INLINE
"""Bytes of a body of which a part is carried."""

_PADDING = tuple(bytes(count) for count in range(8))


class FramingError(Exception):
    """What was received is no packet; nothing after it can be relied on."""


class Request(NamedTuple):
    """A request as it was received."""

    number: int
    id: int
    flags: int
    body: bytes


class Answer(NamedTuple):
    """An answer as it was received; the patches in the order in which they are to be applied."""

    id: int
    errno: int
    patches: list[tuple[int, bytes]]


def build_request(number: int, id: int, body: bytes, flags: int = 0) -> bytes:
    """The packet of a request."""
    return REQUEST.pack(number, id, flags) + body


def parse_request(packet: bytes) -> Request:
    """A request; FramingError when it is too short for its header."""
    if len(packet) < REQUEST.size:
        raise FramingError(f"a request of {len(packet)} bytes")
    number, id, flags = REQUEST.unpack_from(packet)
    return Request(number, id, flags, packet[REQUEST.size :])


def build_answer(id: int, errno: int, patches: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """The packet of an answer."""
    if not patches:
        return ANSWER.pack(id, errno, 0)
    if len(patches) == 1:  # as most have that have any
        address, data = patches[0]
        return _ONE_PATCH.pack(id, errno, 1, address, len(data)) + data + _PADDING[-len(data) % 8]
    parts: list[bytes] = []
    for address, data in patches:
        parts += (PATCH.pack(address, len(data)), data, _PADDING[-len(data) % 8])
    return b"".join((ANSWER.pack(id, errno, len(patches)), *parts))


def parse_answer(packet: bytes) -> Answer:
    """An answer; FramingError when it is not as long as it says."""
    if len(packet) < ANSWER.size:
        raise FramingError(f"an answer of {len(packet)} bytes")
    id, errno, count = ANSWER.unpack_from(packet)
    patches: list[tuple[int, bytes]] = []
    at = ANSWER.size
    for _ in range(count):
        if at + PATCH.size > len(packet):
            raise FramingError(f"patch {len(patches)} of {count} is missing at {at}")
        address, size = PATCH.unpack_from(packet, at)
        at += PATCH.size
        if at + size > len(packet):
            raise FramingError(f"a patch of {size} bytes at {at} of {len(packet)}")
        patches.append((address, packet[at : at + size]))
        at += size + (-size % 8)
    if at != len(packet):
        raise FramingError(f"an answer of {len(packet)} bytes ends at {at}")
    return Answer(id, errno, patches)


def apply_patches(memory: bytearray, patches: Iterable[tuple[int, bytes]]) -> None:
    """Do to the caller's memory what the broker did; FramingError when it went outside."""
    for address, data in patches:
        end = address + len(data)
        if end > len(memory):
            raise FramingError(f"a patch up to {end} of {len(memory)} bytes")
        memory[address:end] = data
