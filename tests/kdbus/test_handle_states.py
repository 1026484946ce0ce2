"""Which command which handle takes: every cell of the two tables, and what a kind of connection is to others.

`TABLE` has a column for each state of a handle and each kind of connection. `ok` is a command that is taken;
all others are refused before anything of them is read.
"""

from __future__ import annotations

import errno as errnos
from errno import EACCES, EBADFD, EEXIST, EFAULT, EINVAL, ENOTTY, EPERM

import pytest
from support.kdbus import NOBODY, Make, World, layout, refused
from support.kdbus.layout import (
    NEGOTIATE,
    Layout,
    encode_request,
)

from .handle_tables import Cell, make, read_table

TABLE = """
                  control  bus-owner domain-owner endpoint custom endpoint-owner ordinary monitor    activator  holder
BUS_MAKE          ok       EBADFD    EBADFD       EBADFD   EBADFD EBADFD         EBADFD   EBADFD     EBADFD     EBADFD
DOMAIN_MAKE       ok       EBADFD    EBADFD       EBADFD   EBADFD EBADFD         EBADFD   EBADFD     EBADFD     EBADFD
ENDPOINT_MAKE     EBADFD   EBADFD    EBADFD       ok       EPERM  EBADFD         EBADFD   EBADFD     EBADFD     EBADFD
ENDPOINT_UPDATE   EBADFD   EBADFD    EBADFD       EBADFD   EBADFD ok             EBADFD   EBADFD     EBADFD     EBADFD
HELLO             EBADFD   EBADFD    EBADFD       ok       ok     EBADFD         EBADFD   EBADFD     EBADFD     EBADFD
UPDATE            EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       ok         ok         ok
BYEBYE            EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
FREE              EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       ok         ok         ok
CONN_INFO         EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       ok         ok         ok
BUS_CREATOR_INFO  EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       ok         ok         ok
LIST              EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       ok         ok         ok
SEND              EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
RECV              EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       ok         ok         EOPNOTSUPP
MSG_CANCEL        EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
NAME_ACQUIRE      EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
NAME_RELEASE      EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
MATCH_ADD         EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
MATCH_REMOVE      EBADFD   EBADFD    EBADFD       EBADFD   EBADFD EBADFD         ok       EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
"""  # noqa: E501 - a table

CELLS = list(read_table(TABLE))
STATES = list(dict.fromkeys(cell.column for cell in CELLS))
EACH_CELL = pytest.mark.parametrize("cell", CELLS, ids=str)


def request_of(command: str) -> Layout:
    request = getattr(layout, command)
    assert isinstance(request, Layout)
    return request


# Every cell


def test_the_table_has_every_command_and_state() -> None:
    commands = {key for key, value in vars(layout).items() if isinstance(value, Layout)}
    assert {cell.row for cell in CELLS} == commands
    assert len(CELLS) == len(commands) * 10


@EACH_CELL
def test_a_handle_takes_a_command_or_says_why_not(world: World, cell: Cell) -> None:
    """Negotiating does nothing, so it succeeds wherever the command is taken."""
    handle = make(world, cell.column)
    state = handle.handle.state
    request = request_of(cell.row)
    for _ in range(2):
        if cell.errno:
            with refused(cell.errno):
                handle.command(request, flags=NEGOTIATE)
            with refused(cell.errno):
                handle.command(request)
        else:
            handle.command(request, flags=NEGOTIATE)
        assert handle.handle.state is state


@EACH_CELL
def test_what_is_not_taken_is_refused_before_it_is_read(world: World, cell: Cell) -> None:
    handle = make(world, cell.column)
    request = request_of(cell.row)
    for address in (0, 1, 8, 2**63, 2**64 - 8):
        with refused(cell.errno or EFAULT):
            handle.ioctl(request.request, address)
    if cell.errno:
        with refused(cell.errno) as refusal:
            handle.command(request, layout.item(99), flags=1 << 40)
        assert refusal.answer["return_flags"] == layout.CANARY


@EACH_CELL
def test_what_is_taken_is_read_in_one_order(world: World, cell: Cell) -> None:
    """Size, then flags, then items; `return_flags` is written once the struct could be read."""
    if cell.errno:
        return
    handle = make(world, cell.column)
    request = request_of(cell.row)
    with refused(EINVAL) as refusal:
        handle.command(request, flags=1 << 40, size=request.size - 8)
    assert refusal.answer["return_flags"] == layout.CANARY
    with refused(errnos.EMSGSIZE) as refusal:
        handle.command(request, flags=1 << 40, size=1 << 20)
    assert refusal.answer["return_flags"] == layout.CANARY
    with refused(EINVAL) as refusal:
        handle.command(request, flags=1 << 40)
    assert refusal.answer["return_flags"] == 0
    for wrong in (layout.item(99), bytes(16), bytes(8), layout.item(1) * 2):
        with refused(EINVAL) as refusal:
            handle.command(request, wrong)
        assert refusal.answer["return_flags"] == 0


@pytest.mark.parametrize("state", STATES)
def test_a_number_that_is_no_command_is_told_everywhere(world: World, state: str) -> None:
    handle = make(world, state)
    known = {value.request for value in vars(layout).values() if isinstance(value, Layout)}
    hello = layout.HELLO.request
    wrong = [0, 1, 0x5401, hello ^ 1 << 8, hello ^ 1 << 16, hello ^ 1 << 30, hello + (1 << 32), 2**64 - 1]
    wrong += [encode_request(direction, 24, number_) for direction in range(4) for number_ in range(256)]
    for request in wrong:
        if request not in known:
            with refused(ENOTTY):
                handle.ioctl(request, 1)


# Becoming something


@pytest.mark.parametrize("first", ["BUS_MAKE", "DOMAIN_MAKE"])
def test_a_control_handle_makes_one_thing(world: World, first: str) -> None:
    handle = world.open_control(world.task(1000, privileged=True))
    if first == "BUS_MAKE":
        handle.bus_make(name="1000-first")
    else:
        handle.domain_make("first")
    with refused(EBADFD):
        handle.bus_make(name="1000-second")
    with refused(EBADFD):
        handle.domain_make("second")


@pytest.mark.parametrize("first", ["HELLO", "ENDPOINT_MAKE"])
def test_an_endpoint_handle_becomes_one_thing(world: World, first: str) -> None:
    handle = world.open()
    if first == "HELLO":
        handle.hello()
    else:
        handle.endpoint_make("1000-first")
    with refused(EBADFD):
        handle.hello()
    with refused(EBADFD):
        handle.endpoint_make("1000-second")


def test_what_failed_may_be_tried_again(world: World) -> None:
    control = world.open_control()
    for errno, wrong in (
        (EINVAL, "foo"),
        (EINVAL, "1001-foo"),
        (EEXIST, "1000-test"),
        (errnos.ENAMETOOLONG, "1000-" + "x" * 60),
    ):
        with refused(errno):
            control.bus_make(name=wrong)
    with refused(EPERM):
        control.domain_make("inner")
    control.bus_make(name="1000-good")
    endpoint = world.open()
    for wrong in ("foo", "1001-foo", "bus", "1000-"):
        with refused(EINVAL):
            endpoint.endpoint_make(wrong)
    world.make_endpoint("1000-taken")
    with refused(EEXIST):
        endpoint.endpoint_make("1000-taken")
    with refused(EINVAL):
        endpoint.hello(pool_size=1)
    endpoint.hello()


def test_who_may_not_make_endpoints_may_connect_with_the_same_handle(world: World) -> None:
    handle = world.open(task=world.task(NOBODY))
    with refused(EPERM):
        handle.endpoint_make("65534-foo")
    with refused(EPERM):  # before anything is read
        handle.ioctl(layout.ENDPOINT_MAKE.request, 1)
    handle.hello()


def test_who_may_not_make_domains_may_make_a_bus_with_the_same_handle(world: World) -> None:
    handle = world.open_control(world.task(NOBODY))
    with refused(EPERM):
        handle.ioctl(layout.DOMAIN_MAKE.request, 1)
    handle.bus_make(name="65534-bus")


@pytest.mark.parametrize(
    ("flags", "uid", "gid", "groups", "privileged", "opens"),
    [
        (0, 1000, 5, (), False, True),
        (0, 2000, 1000, (), False, False),
        (0, 2000, 5, (), True, True),
        (Make.ACCESS_GROUP, 2000, 1000, (), False, True),
        (Make.ACCESS_GROUP, 2000, 5, (7, 1000), False, True),
        (Make.ACCESS_GROUP, 2000, 5, (7,), False, False),
        (Make.ACCESS_WORLD, 2000, 5, (), False, True),
        (Make.ACCESS_GROUP | Make.ACCESS_WORLD, 2000, 5, (), False, True),
    ],
)
@pytest.mark.parametrize("place", ["bus", "endpoint"])
def test_who_may_open_is_a_matter_of_modes(
    world: World,
    place: str,
    flags: int,
    uid: int,
    gid: int,
    groups: tuple[int, ...],
    privileged: bool,
    opens: bool,
) -> None:
    if place == "bus":
        world.make_bus("1000-other", flags=flags)
        node = world.find_endpoint(bus="1000-other")
    else:
        _, node = world.make_endpoint("1000-custom", flags=flags)
    task = world.task(uid, gid, groups=groups, privileged=privileged)
    if opens:
        world.connect(task, node=node)
    else:
        with refused(EACCES):
            world.open(node, task)
