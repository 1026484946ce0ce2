"""Server addresses: the notation, and libdbus' opinion of it where libdbus is installed."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busproxy.wire.address import (
    Address,
    AddressError,
    escape_value,
    format_address,
    format_addresses,
    parse_addresses,
    unescape_value,
)

NO_COLON = "Address does not contain a colon"
NO_VALUE = "'=' character not found or has no value following it"
SHORT_ESCAPE = "In D-Bus address, percent character was not followed by two hex digits"
BAD_ESCAPE = "In D-Bus address, percent character was followed by characters other than hex digits"


def unescaped(char: str) -> str:
    return f"In D-Bus address, character '{char}' should have been escaped\n"


ACCEPTED: list[tuple[str, list[Address]]] = [
    ("unix:path=/run/bus", [Address("unix", {"path": "/run/bus"})]),
    ("unix:path=/run/bus,guid=00ff", [Address("unix", {"path": "/run/bus", "guid": "00ff"})]),
    (
        "unix:abstract=/tmp/x;tcp:host=h,port=1",
        [Address("unix", {"abstract": "/tmp/x"}), Address("tcp", {"host": "h", "port": "1"})],
    ),
    ("unix:path=/a;", [Address("unix", {"path": "/a"})]),
    ("unix:path=/a,", [Address("unix", {"path": "/a"})]),
    ("systemd:", [Address("systemd")]),
    (":", [Address("")]),
    (":;:", [Address(""), Address("")]),
    ("unix:path=/a%20b", [Address("unix", {"path": "/a b"})]),
    ("unix:path=%2f%2F%2d", [Address("unix", {"path": "//-"})]),
    ("unix:path=%c3%bc", [Address("unix", {"path": "ü"})]),
    ("unix:path=%ff", [Address("unix", {"path": "\udcff"})]),
    ("unix:path=%00x", [Address("unix", {"path": "\0x"})]),
    ("unix:path=-_/\\.*aZ09", [Address("unix", {"path": "-_/\\.*aZ09"})]),
    ("unix:path=/a,path=/b", [Address("unix", {"path": "/a"})]),
    ("unix:%70ath=/a", [Address("unix", {"%70ath": "/a"})]),
    ("unix:a key=x", [Address("unix", {"a key": "x"})]),
    ("a b=c,d:e=f", [Address("a b=c,d", {"e": "f"})]),
]
REFUSED = [
    ("", "Empty address ''", 0),
    ("unix", NO_COLON, 0),
    (";", NO_COLON, 0),
    ("unix:path=/a;;", NO_COLON, 13),
    ("unix:path=/a;unix", NO_COLON, 13),
    ("unix:path", NO_VALUE, 5),
    ("unix:path=", NO_VALUE, 5),
    ("unix:=/a", NO_VALUE, 5),
    ("unix:,", NO_VALUE, 5),
    ("unix:path=/a,,", NO_VALUE, 13),
    ("unix:path=/a,guid", NO_VALUE, 13),
    ("unix:path=,guid=1", NO_VALUE, 5),
    ("unix:path=/a=b", unescaped("="), 12),
    ("unix:path=/a:b", unescaped(":"), 12),
    ("unix:path=/a b", unescaped(" "), 12),
    ("unix:path=~", unescaped("~"), 10),
    ("unix:path=/a%", SHORT_ESCAPE, 12),
    ("unix:path=/a%2", SHORT_ESCAPE, 12),
    ("unix:path=/a%2,guid=1", SHORT_ESCAPE, 12),
    ("unix:path=/a%2x", BAD_ESCAPE, 12),
    ("unix:path=/a%x2", BAD_ESCAPE, 12),
    ("unix:path=/a%+2", BAD_ESCAPE, 12),
    ("unix:path=%%20", BAD_ESCAPE, 10),
]


@pytest.mark.parametrize(("text", "addresses"), ACCEPTED)
def test_an_address_is_parsed(text: str, addresses: list[Address]) -> None:
    assert parse_addresses(text) == addresses


@pytest.mark.parametrize(("text", "message", "offset"), REFUSED)
def test_a_bad_address_is_refused_with_reason_and_place(text: str, message: str, offset: int) -> None:
    with pytest.raises(AddressError) as caught:
        parse_addresses(text)
    assert (str(caught.value), caught.value.offset) == (message, offset)


def test_parameters_keep_their_order() -> None:
    assert list(parse_addresses("tcp:port=1,host=h,family=ipv4")[0].params) == ["port", "host", "family"]


def test_bytes_that_need_it_are_escaped_in_lower_case() -> None:
    assert escape_value("/tmp/my bus,ü~") == "/tmp/my%20bus%2c%c3%bc%7e"


def test_a_file_name_that_is_no_utf_8_survives() -> None:
    assert escape_value("\udcff") == "%ff"
    assert unescape_value("%ff") == "\udcff"


def test_the_offset_of_a_bad_escape_counts_from_the_value() -> None:
    with pytest.raises(AddressError) as caught:
        unescape_value("abc%zz")
    assert caught.value.offset == 3


def test_an_address_is_written_with_its_parameters_in_order() -> None:
    address = Address("unix", {"path": "/a b", "guid": "00ff"})
    assert format_address(address) == "unix:path=/a%20b,guid=00ff"


def test_a_list_is_written_with_semicolons() -> None:
    assert format_addresses([Address("unix", {"path": "/a"}), Address("systemd")]) == "unix:path=/a;systemd:"


@pytest.mark.parametrize(
    "address",
    [
        Address("unix", {"path": ""}),
        Address("unix", {"": "x"}),
        Address("unix", {"a=b": "x"}),
        Address("unix", {"a,b": "x"}),
        Address("unix", {"a;b": "x"}),
        Address("un:ix"),
        Address("un;ix"),
    ],
)
def test_what_has_no_notation_is_not_written(address: Address) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has a text of its own
        format_address(address)


_values = st.binary(min_size=1, max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape"))
_addresses = st.builds(
    Address,
    st.text(st.characters(codec="ascii", exclude_characters=":;"), max_size=8),
    st.dictionaries(st.text("abcdef%: \\", min_size=1, max_size=6), _values, max_size=4),
)


@given(st.lists(_addresses, min_size=1, max_size=4))
def test_every_list_of_addresses_survives_being_written_and_read(addresses: list[Address]) -> None:
    assert parse_addresses(format_addresses(addresses)) == addresses


class _DBusError(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("flags", ctypes.c_uint),
        ("padding", ctypes.c_void_p),
    )


def load_libdbus() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libdbus-1.so.3")
    except OSError:
        return None
    entries = ctypes.POINTER(ctypes.c_void_p)
    error = ctypes.POINTER(_DBusError)
    library.dbus_error_init.argtypes = library.dbus_error_free.argtypes = (error,)
    library.dbus_error_init.restype = library.dbus_error_free.restype = None
    library.dbus_parse_address.argtypes = (
        ctypes.c_char_p,
        ctypes.POINTER(entries),
        ctypes.POINTER(ctypes.c_int),
        error,
    )
    library.dbus_parse_address.restype = ctypes.c_uint
    library.dbus_address_entry_get_method.argtypes = (ctypes.c_void_p,)
    library.dbus_address_entry_get_method.restype = ctypes.c_char_p
    library.dbus_address_entry_get_value.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    library.dbus_address_entry_get_value.restype = ctypes.c_char_p
    library.dbus_address_entries_free.argtypes = (entries,)
    library.dbus_address_entries_free.restype = None
    library.dbus_address_escape_value.argtypes = (ctypes.c_char_p,)
    library.dbus_address_escape_value.restype = ctypes.c_void_p
    library.dbus_free.argtypes = (ctypes.c_void_p,)
    library.dbus_free.restype = None
    return library


LIBDBUS = load_libdbus()
needs_libdbus = pytest.mark.skipif(
    LIBDBUS is None, reason="needs libdbus-1.so.3 (Debian package libdbus-1-3)"
)


def judge(text: str, keys: set[str]) -> str | list[tuple[bytes, dict[str, bytes | None]]]:
    """libdbus' words for refusing the address, or transport and the values of `keys` of each entry."""
    assert LIBDBUS is not None
    error = _DBusError()
    LIBDBUS.dbus_error_init(error)
    entries = ctypes.POINTER(ctypes.c_void_p)()
    count = ctypes.c_int()
    if not LIBDBUS.dbus_parse_address(text.encode(), ctypes.byref(entries), ctypes.byref(count), error):
        message = error.message.decode()
        LIBDBUS.dbus_error_free(error)
        return message
    try:
        return [
            (
                LIBDBUS.dbus_address_entry_get_method(entries[index]),
                {key: LIBDBUS.dbus_address_entry_get_value(entries[index], key.encode()) for key in keys},
            )
            for index in range(count.value)
        ]
    finally:
        LIBDBUS.dbus_address_entries_free(entries)


def our_judgement(text: str, keys: set[str]) -> str | list[tuple[bytes, dict[str, bytes | None]]]:
    def as_c_string(value: str | None) -> bytes | None:
        return None if value is None else value.encode("utf-8", "surrogateescape").partition(b"\0")[0]

    try:
        addresses = parse_addresses(text)
    except AddressError as error:
        return str(error)
    return [
        (address.transport.encode(), {key: as_c_string(address.params.get(key)) for key in keys})
        for address in addresses
    ]


@needs_libdbus
@pytest.mark.parametrize("text", [text for text, *_ in [*ACCEPTED, *REFUSED]])
def test_libdbus_says_the_same(text: str) -> None:
    keys = {"path", "guid", "abstract", "host", "port", "%70ath", "a key", "e"}
    assert our_judgement(text, keys) == judge(text, keys)


_pieces = st.sampled_from(
    ["unix", ":", ";", ",", "=", "%", "%2", "20", "%20", "%g0", "a", "b", "/", "\\", " ", "~"]
)


@needs_libdbus
@given(st.lists(_pieces, max_size=14).map("".join))
def test_libdbus_says_the_same_of_any_text(text: str) -> None:
    keys = {"a", "b", "/", "a/"}
    assert our_judgement(text, keys) == judge(text, keys)


@needs_libdbus
@given(st.binary(max_size=30).filter(lambda data: 0 not in data))
def test_libdbus_escapes_the_same_bytes(data: bytes) -> None:
    assert LIBDBUS is not None
    pointer = LIBDBUS.dbus_address_escape_value(data)
    escaped = ctypes.string_at(pointer)
    LIBDBUS.dbus_free(pointer)
    assert escape_value(data.decode("utf-8", "surrogateescape")).encode() == escaped
