"""How commands are read: the generic algorithm, one check after the other, and negotiation."""

from __future__ import annotations

from errno import EBADF, EFAULT, EINVAL, EMSGSIZE, ENAMETOOLONG

import pytest
from caller_world import Thread
from handle_world import (
    build_command,
    build_message,
    name_item,
    negotiate_item,
    refused,
)

from kdbus_core.abi import CMD, ITEM_HEADER, NEGOTIATE, Command, ItemType
from kdbus_core.commands.forms import FORMS, MESSAGE, Arguments, Form, parse
from kdbus_core.items import MEMFD, NUMBER, build_item, build_numbers_item

ALL_FORMS = [*((command.name, form) for command, form in FORMS.items()), ("message", MESSAGE)]
COMMANDS = [form for _, form in ALL_FORMS if form.returns_flags]
every_form = pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in ALL_FORMS])
every_command = pytest.mark.parametrize(
    "form", [pytest.param(form, id=name) for name, form in ALL_FORMS if form.returns_flags]
)

BUS_MAKE = FORMS[Command.BUS_MAKE]
MATCH_ADD = FORMS[Command.MATCH_ADD]
FREE = FORMS[Command.FREE]
UNKNOWN_FLAG = 1 << 40
GARBAGE = 0xDEAD


def build(form: Form, flags: int = 0, items: bytes = b"", size: int | None = None) -> bytes:
    """Any command or message; what would be returned flags is garbage."""
    blank = list(form.struct.unpack(bytes(form.struct.size)))
    blank[0] = form.struct.size + len(items) if size is None else size
    blank[1] = flags
    if form.returns_flags:
        blank[2] = GARBAGE
    return form.struct.pack(*blank) + items


class Case:
    """A command in the memory of a thread."""

    def __init__(self, form: Form, data: bytes, *, writable: bool = True) -> None:
        self.form = form
        self.thread = Thread()
        self.address = self.thread.put(data, writable=writable)
        self.size = len(data)

    def parse(self) -> Arguments:
        return parse(self.form, self.thread, self.address)

    @property
    def memory(self) -> bytes:
        return self.thread.read(self.address, self.size)

    @property
    def flags(self) -> int:
        return int(NUMBER.unpack_from(self.memory, 8)[0])

    @property
    def return_flags(self) -> int:
        return int(NUMBER.unpack_from(self.memory, 16)[0])


def mandatory_items(form: Form) -> bytes:
    items = {
        ItemType.MAKE_NAME: name_item("1000-x", ItemType.MAKE_NAME),
        ItemType.BLOOM_PARAMETER: build_numbers_item(ItemType.BLOOM_PARAMETER, 64, 1),
        ItemType.NAME: name_item("a.b"),
    }
    return b"".join(items[ItemType(type)] for type in form.mandatory)


def test_there_is_a_form_for_every_command() -> None:
    assert set(FORMS) == set(Command)


@every_form
def test_what_a_form_needs_is_enough(form: Form) -> None:
    arguments = Case(form, build(form, items=mandatory_items(form))).parse()
    assert not arguments.negotiates
    assert arguments.flags == 0


@every_form
def test_all_flags_that_there_are_are_accepted(form: Form) -> None:
    arguments = Case(form, build(form, form.flags, mandatory_items(form))).parse()
    assert arguments.flags == form.flags


@every_form
@pytest.mark.parametrize("misalignment", range(1, 8))
def test_an_address_that_is_not_aligned_is_a_fault(form: Form, misalignment: int) -> None:
    case = Case(form, bytes(misalignment) + build(form))
    case.address += misalignment
    with refused(EFAULT):
        case.parse()


@pytest.mark.parametrize("address", [0, 8, 1 << 63, (1 << 64) - 8, 0xFFFF_FFFF_8000_0000])
def test_an_address_where_nothing_is_is_a_fault(address: int) -> None:
    with refused(EFAULT):
        parse(FREE, Thread(), address)


@every_form
def test_a_command_that_is_longer_than_readable_memory_is_a_fault(form: Form) -> None:
    with refused(EFAULT):
        Case(form, build(form, size=form.struct.size + 8)).parse()


@every_form
@pytest.mark.parametrize("size", [0, 1, 23])
def test_a_command_that_is_too_small_is_invalid_even_if_nothing_follows_its_size(
    form: Form, size: int
) -> None:
    with refused(EINVAL):
        Case(form, NUMBER.pack(size)).parse()


@every_form
def test_a_command_may_not_be_smaller_than_its_struct(form: Form) -> None:
    with refused(EINVAL):
        Case(form, build(form, size=form.struct.size - 1)).parse()


@every_form
@pytest.mark.parametrize("size", [32769, 1 << 32, (1 << 64) - 1])
def test_a_command_that_is_too_large_is_not_even_read(form: Form, size: int) -> None:
    with refused(EMSGSIZE):
        Case(form, build(form, size=size)).parse()


def test_a_command_may_have_32_kib() -> None:
    mask = build_item(ItemType.BLOOM_MASK, bytes(32768 - 32 - 16))
    arguments = Case(MATCH_ADD, build(MATCH_ADD, items=mask)).parse()
    assert len(arguments.items) == 1


@every_form
def test_unknown_flags_are_invalid_and_beat_bad_items(form: Form) -> None:
    bad_item = build_item(ItemType.MAKE_NAME, b"x" * 100)
    with refused(EINVAL):
        Case(form, build(form, UNKNOWN_FLAG, bad_item)).parse()
    with refused(EINVAL):
        Case(form, build(form, UNKNOWN_FLAG | NEGOTIATE)).parse()


@every_form
def test_an_item_of_another_command_is_invalid(form: Form) -> None:
    for type in {*ItemType, 0, 0x7777} - set(form.items):
        with refused(EINVAL):
            Case(form, build(form, items=build_item(type, bytes(8)))).parse()


@every_form
def test_only_what_is_repeatable_may_come_twice(form: Form) -> None:
    payloads = {
        ItemType.PAYLOAD_VEC: bytes([1, *bytes(15)]),
        ItemType.PAYLOAD_MEMFD: MEMFD.pack(0, 1, 0, 0),
        ItemType.CREDS: bytes(64),
        ItemType.CANCEL_FD: bytes(4),
        ItemType.BLOOM_PARAMETER: bytes(16),
        ItemType.PIDS: bytes(24),
        ItemType.POLICY_ACCESS: bytes(24),
        ItemType.ID_ADD: bytes(16),
        ItemType.ID_REMOVE: bytes(16),
        ItemType.NAME_ADD: bytes(32),
        ItemType.NAME_REMOVE: bytes(32),
        ItemType.NAME_CHANGE: bytes(32),
    }
    strings = {
        ItemType.NAME, ItemType.DST_NAME, ItemType.MAKE_NAME, ItemType.SECLABEL, ItemType.CONN_DESCRIPTION
    }  # fmt: skip
    for type, occurs in form.items.items():
        payload = b"a\0" if type in strings else payloads.get(ItemType(type), bytes(8))
        twice = build_item(type, payload) * 2
        mandatory = b"" if type in form.mandatory else mandatory_items(form)
        case = Case(form, build(form, items=mandatory + twice))
        if occurs.repeatable:
            assert [item.type for item in case.parse().items].count(type) == 2
        else:
            with refused(EINVAL):
                case.parse()


@every_form
def test_what_is_mandatory_must_be_there(form: Form) -> None:
    for missing in form.mandatory:
        items = b"".join(
            mandatory_items(Form(CMD, 0, {type: form.items[type]}))
            for type in form.mandatory
            if type != missing
        )
        with refused(EINVAL):
            Case(form, build(form, items=items)).parse()


TOO_LONG = build_item(ItemType.MAKE_NAME, b"x" * 100)
TOO_SHORT = build_item(ItemType.MAKE_NAME, b"\0")


@pytest.mark.parametrize(
    ("items", "errno"),
    [
        pytest.param(TOO_LONG, ENAMETOOLONG, id="its form"),
        pytest.param(TOO_LONG + TOO_SHORT, ENAMETOOLONG, id="the first before the second"),
        pytest.param(TOO_SHORT + TOO_LONG, EINVAL, id="and the other way round"),
        pytest.param(TOO_LONG + ITEM_HEADER.pack(3, 3), ENAMETOOLONG, id="a form before later bounds"),
        pytest.param(TOO_LONG + bytes(8), ENAMETOOLONG, id="a form before the end of the walk"),
        pytest.param(build_item(9999, b"") + TOO_LONG, EINVAL, id="an unknown type before a later form"),
        pytest.param(mandatory_items(BUS_MAKE) + TOO_LONG, ENAMETOOLONG, id="a form before its repetition"),
        pytest.param(TOO_LONG + mandatory_items(BUS_MAKE), ENAMETOOLONG, id="a form before a repetition"),
    ],
)
def test_the_first_item_that_is_wrong_decides(items: bytes, errno: int) -> None:
    with refused(errno):
        Case(BUS_MAKE, build(BUS_MAKE, items=items)).parse()


def test_a_bad_descriptor_in_a_message_is_found_before_what_is_wrong_later() -> None:
    memory = build_item(ItemType.PAYLOAD_MEMFD, MEMFD.pack(0, 8, -1, 0))
    with refused(EBADF):
        Case(MESSAGE, build(MESSAGE, items=memory + ITEM_HEADER.pack(1, 1))).parse()


def test_fields_and_items_arrive_as_they_were() -> None:
    items = build_numbers_item(ItemType.ID, 5) + name_item("a.b")
    arguments = Case(MATCH_ADD, build_command(Command.MATCH_ADD, 77, flags=1, items=[items])).parse()
    assert list(arguments.fields) == [77]
    assert arguments.flags == 1
    assert [(item.type, item.payload) for item in arguments.items] == [
        (ItemType.ID, NUMBER.pack(5)),
        (ItemType.NAME, b"a.b\0"),
    ]
    assert arguments.name() == "a.b"
    assert arguments.number(ItemType.ID) == 5
    assert arguments.find(ItemType.DST_ID) is None
    assert arguments.number(ItemType.DST_ID) is None
    assert arguments.name(ItemType.MAKE_NAME) is None


def test_a_message_has_all_its_fields_and_its_priority_has_a_sign() -> None:
    message = build_message(
        priority=-7, dst_id=1, src_id=2, payload_type=3, cookie=4, timeout_or_reply=(1 << 64) - 1
    )
    assert list(Case(MESSAGE, message).parse().fields) == [-7, 1, 2, 3, 4, (1 << 64) - 1]


# Returned flags


@every_command
def test_returned_flags_are_none_after_a_success(form: Form) -> None:
    case = Case(form, build(form, items=mandatory_items(form)))
    case.parse()
    assert case.return_flags == 0


@every_command
def test_returned_flags_are_none_after_bad_flags_and_bad_items(form: Form) -> None:
    for data in (build(form, UNKNOWN_FLAG), build(form, items=build_item(9999, b""))):
        case = Case(form, data)
        with refused(EINVAL):
            case.parse()
        assert case.return_flags == 0


@every_command
def test_returned_flags_stay_what_they_were_after_a_bad_size(form: Form) -> None:
    case = Case(form, build(form, size=form.struct.size - 1))
    with refused(EINVAL):
        case.parse()
    assert case.return_flags == GARBAGE


@every_command
def test_a_command_that_cannot_be_written_is_a_fault(form: Form) -> None:
    with refused(EFAULT):
        Case(form, build(form, UNKNOWN_FLAG), writable=False).parse()


def test_a_message_is_not_written_to() -> None:
    data = build(MESSAGE)
    case = Case(MESSAGE, data, writable=False)
    case.parse()
    assert case.memory == data


def test_flags_are_returned_into_the_struct() -> None:
    case = Case(FREE, build(FREE))
    arguments = case.parse()
    arguments.return_flags(96)
    assert case.return_flags == 96


# Negotiation


@every_form
def test_negotiation_tells_the_flags_that_there_are_and_needs_nothing_else(form: Form) -> None:
    case = Case(form, build(form, NEGOTIATE))
    assert case.parse().negotiates
    assert case.flags == form.flags


@every_form
def test_negotiation_overwrites_the_types_of_items_that_a_command_does_not_take(form: Form) -> None:
    asked = [0x4711, *ItemType, 0, (1 << 64) - 1]
    case = Case(form, build(form, NEGOTIATE | form.flags, negotiate_item(*asked)))
    case.parse()
    answered = [number for (number,) in NUMBER.iter_unpack(case.memory[form.struct.size + 16 :])]
    assert answered == [type if type in form.items else 0 for type in asked]


@every_form
def test_a_negotiate_item_is_answered_and_the_command_goes_on_without_the_bit(form: Form) -> None:
    items = mandatory_items(form)
    case = Case(form, build(form, 0, items + negotiate_item(0x4711, ItemType.NEGOTIATE)))
    arguments = case.parse()
    assert not arguments.negotiates
    assert case.flags == 0
    assert case.memory[-16:] == NUMBER.pack(0) + NUMBER.pack(ItemType.NEGOTIATE)
    assert ItemType.NEGOTIATE not in [item.type for item in arguments.items]


@every_form
def test_negotiation_judges_items(form: Form) -> None:
    with refused(EINVAL):
        Case(form, build(form, NEGOTIATE, build_item(ItemType.NEGOTIATE, bytes(7)))).parse()
    with refused(EINVAL):
        Case(form, build(form, NEGOTIATE, negotiate_item() * 2)).parse()


def test_what_is_wrong_with_an_item_is_found_before_anything_is_negotiated() -> None:
    data = build(FREE, NEGOTIATE, negotiate_item(0x4711) + build_item(9999, b""))
    case = Case(FREE, data)
    with refused(EINVAL):
        case.parse()
    assert case.memory[24:] == data[24:]
    assert case.flags == NEGOTIATE
