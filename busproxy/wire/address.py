"""Server addresses: "unix:path=/run/bus,guid=…;tcp:host=localhost" (specification, "Server Addresses").

An address is a list of entries, each a transport with parameters; a client tries them in turn, a server
listens on all of them. Which transports and parameters make sense is for the listener to judge; here is only
the notation, accepted and refused as libdbus does:

- a byte outside `[-0-9A-Za-z_/\\.*]` has to be written as %xx, in values only, keys are taken as they are;
- an entry may have no parameters ("unix:") and even no transport (":"); a semicolon or comma may stand at the
  end; an empty entry or an empty value may not stand anywhere;
- of a key that is given twice the first value counts.

Values are bytes to libdbus; here they are str with `surrogateescape`, as file names are in Python. A value
may hold NUL (%00), which no transport can use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "Address",
    "AddressError",
    "escape_value",
    "format_address",
    "format_addresses",
    "parse_addresses",
    "unescape_value",
]

_PLAIN: Final = frozenset(b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz/\\.*")
_HEX_PAIR: Final = re.compile(r"[0-9a-fA-F]{2}")


class AddressError(ValueError):
    """The text is no address. `offset` is the index of the character where the fault is."""

    offset: int

    def __init__(self, text: str, offset: int) -> None:
        super().__init__(text)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Address:
    """One entry: a transport ("unix", "tcp", "systemd" …) and its parameters, unescaped, in order."""

    transport: str
    params: dict[str, str] = field(default_factory=dict)


def parse_addresses(text: str) -> list[Address]:
    """Parse a list of addresses, one at least. Raise `AddressError` if libdbus would refuse it."""
    if not text:
        raise AddressError("Empty address ''", 0)
    addresses: list[Address] = []
    position = 0
    while position < len(text):
        end = _find(text, ";", position, len(text))
        addresses.append(_parse_entry(text, position, end))
        position = end + 1
    return addresses


def format_address(address: Address) -> str:
    """Write one entry, with its values escaped. The opposite of `parse_addresses` for what it can give.

    Raise ValueError for a transport, key or value that has no notation (an empty value, a key with "=").
    """
    if set(address.transport) & set(":;"):
        raise ValueError(f"not the name of a transport: {address.transport!r}")
    for key, value in address.params.items():
        if not key or set(key) & set("=,;"):
            raise ValueError(f"not the name of a parameter: {key!r}")
        if not value:
            raise ValueError(f"the parameter {key!r} has no value")
    params = ",".join(f"{key}={escape_value(value)}" for key, value in address.params.items())
    return f"{address.transport}:{params}"


def format_addresses(addresses: Iterable[Address]) -> str:
    """Write a list of entries as one address."""
    return ";".join(format_address(address) for address in addresses)


def escape_value(value: str) -> str:
    """Escape a value for its place after "=" in an address."""
    return "".join(
        chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in value.encode("utf-8", "surrogateescape")
    )


def unescape_value(text: str) -> str:
    """Undo `escape_value`. Raise `AddressError` for what should have been escaped, or is so wrongly."""
    return _unescape(text, 0, len(text))


def _find(text: str, separator: str, start: int, end: int) -> int:
    """Give the index of the separator, or `end` if there is none before it."""
    found = text.find(separator, start, end)
    return end if found < 0 else found


def _parse_entry(text: str, start: int, end: int) -> Address:
    colon = _find(text, ":", start, end)
    if colon == end:
        raise AddressError("Address does not contain a colon", start)
    address = Address(text[start:colon])
    position = colon + 1
    while position < end:
        comma = _find(text, ",", position, end)
        equals = _find(text, "=", position, comma)
        if equals in (position, comma) or equals + 1 == comma:
            raise AddressError("'=' character not found or has no value following it", position)
        value = _unescape(text, equals + 1, comma)
        address.params.setdefault(text[position:equals], value)
        position = comma + 1
    return address


def _unescape(text: str, start: int, end: int) -> str:
    value = bytearray()
    position = start
    while position < end:
        char = text[position]
        if char == "%":
            if position + 3 > end:
                raise AddressError(
                    "In D-Bus address, percent character was not followed by two hex digits", position
                )
            digits = text[position + 1 : position + 3]
            if _HEX_PAIR.fullmatch(digits) is None:
                raise AddressError(
                    "In D-Bus address, percent character was followed by characters other than hex digits",
                    position,
                )
            value.append(int(digits, 16))
            position += 3
        elif ord(char) in _PLAIN:
            value.append(ord(char))
            position += 1
        else:
            raise AddressError(f"In D-Bus address, character '{char}' should have been escaped\n", position)
    return value.decode("utf-8", "surrogateescape")
