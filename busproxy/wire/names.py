"""Which strings are names: bus names, interfaces, members, errors, object paths, name prefixes.

The rules are those of the specification ("Valid Names"), read the way libdbus reads them, because it is
libdbus' verdict that clients depend on. It is more generous with unique names than the text: after the colon
one element is enough, even none is, and an element may follow a leading dot (":.1").

A bus repeats the same few names for ever, so answers are remembered for short strings; long ones (a path has
no length limit) are checked each time, which keeps a hostile peer from filling the memory.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = [
    "MAX_NAME_LENGTH",
    "is_bus_name",
    "is_error_name",
    "is_interface_name",
    "is_member_name",
    "is_namespace",
    "is_object_path",
    "is_unique_name",
    "is_well_known_name",
]

MAX_NAME_LENGTH = 255
"""Longest bus, interface, member or error name, in bytes."""

_ELEMENT = "[A-Za-z_][A-Za-z0-9_]*+"
_BUS_ELEMENT = "[A-Za-z_-][A-Za-z0-9_-]*+"

_match_unique_name = re.compile(r":(?:\.?[A-Za-z0-9_-])*").fullmatch
_match_well_known_name = re.compile(rf"{_BUS_ELEMENT}(?:\.{_BUS_ELEMENT})+").fullmatch
_match_namespace = re.compile(rf"{_BUS_ELEMENT}(?:\.{_BUS_ELEMENT})*").fullmatch
_match_interface_name = re.compile(rf"{_ELEMENT}(?:\.{_ELEMENT})+").fullmatch
_match_member_name = re.compile(_ELEMENT).fullmatch
# Possessive repetition: a path of millions of elements must not leave as many states to come back to.
_match_object_path = re.compile(r"/|(?:/[A-Za-z0-9_]++)++").fullmatch


@lru_cache(maxsize=1024)
def _is_unique_name(text: str) -> bool:
    return _match_unique_name(text) is not None


@lru_cache(maxsize=1024)
def _is_well_known_name(text: str) -> bool:
    return _match_well_known_name(text) is not None


@lru_cache(maxsize=1024)
def _is_interface_name(text: str) -> bool:
    return _match_interface_name(text) is not None


@lru_cache(maxsize=1024)
def _is_member_name(text: str) -> bool:
    return _match_member_name(text) is not None


@lru_cache(maxsize=4096)
def _is_short_object_path(text: str) -> bool:
    return _match_object_path(text) is not None


def is_unique_name(text: str) -> bool:
    """Tell whether the bus could have given this name to a connection (":1.42")."""
    return len(text) <= MAX_NAME_LENGTH and _is_unique_name(text)


def is_well_known_name(text: str) -> bool:
    """Tell whether a connection may ask for this name ("org.example.Editor")."""
    return len(text) <= MAX_NAME_LENGTH and _is_well_known_name(text)


def is_bus_name(text: str) -> bool:
    """Tell whether this is a bus name of either kind, as a sender or destination is."""
    return len(text) <= MAX_NAME_LENGTH and (_is_unique_name(text) or _is_well_known_name(text))


def is_interface_name(text: str) -> bool:
    """Tell whether this is an interface name: two elements or more, no '-', none begins with a digit."""
    return len(text) <= MAX_NAME_LENGTH and _is_interface_name(text)


def is_member_name(text: str) -> bool:
    """Tell whether this is the name of a method or signal: one element, no '-'."""
    return len(text) <= MAX_NAME_LENGTH and _is_member_name(text)


def is_error_name(text: str) -> bool:
    """Tell whether this is an error name; the rules are those of interface names."""
    return is_interface_name(text)


def is_object_path(text: str) -> bool:
    """Tell whether this is an object path; there is no limit on its length."""
    if len(text) <= MAX_NAME_LENGTH:
        return _is_short_object_path(text)
    return _match_object_path(text) is not None


def is_namespace(text: str) -> bool:
    """Tell whether this may stand in `arg0namespace`: a bus name of which one element is enough.

    libdbus takes unique names here as well, though no name can lie below one.
    """
    if len(text) > MAX_NAME_LENGTH:
        return False
    return _match_namespace(text) is not None or _is_unique_name(text)
