"""Why a SEND is refused, and what is told of a message that has two faults.

`FAULTS` is kdbus' table of the checks of SEND, in its order. Each fault changes some of an otherwise good
message. For every two that can be in one message the errno has to be that of the earlier; faults of items
(13 to 20, and again those of files) are told in the order of the items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import (
    E2BIG,
    EADDRNOTAVAIL,
    EAGAIN,
    EBADF,
    EBADMSG,
    EBADSLT,
    ECOMM,
    EDESTADDRREQ,
    EDOM,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMLINK,
    EMSGSIZE,
    ENOBUFS,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EREMCHG,
    ESRCH,
    ETXTBSY,
)
from typing import NamedTuple

import pytest
from support.kdbus import NOBODY, Client, ItemType, Msg, World, layout, refused
from support.kdbus.layout import (
    DST_BROADCAST,
    F_SEAL_ALL,
    SYNC_REPLY,
    bloom_filter,
    fds,
    memfd,
    string,
    vec_at,
)

OTHER, NOTHING = -1, -2
"""In place of the id of the receiver, and of an item that must not be there."""
EXPECT_REPLY, SIGNAL = int(Msg.EXPECT_REPLY), int(Msg.SIGNAL)
FREE_NAME = "nobody.has.this"
ACTIVATED = "foo.activated"
FDS, FILTER, DST_NAME = ItemType.FDS, ItemType.BLOOM_FILTER, ItemType.DST_NAME
LATER = 10**15


class Fault(NamedTuple):
    """What is wrong: its place in the table, what is told, and how a message comes to have it.

    `fields` are those of the header that it needs; `needs` and `forbids` flags of the message. `item` names
    an entry of `make_items`; `kind` is its type if there may be only one of it, and `without` a type that
    must not be in the message.
    """

    what: str
    place: int
    errno: int
    fields: dict[str, int] = {}  # noqa: RUF012 - never changed
    needs: int = 0
    forbids: int = 0
    item: str = ""
    kind: int = 0
    without: int = 0
    command_item: str = ""
    command_flags: int = 0


def to_everybody(**fields: int) -> dict[str, int]:
    return {"dst": DST_BROADCAST, **fields}


FAULTS = [
    Fault("an unknown flag of the command", 1, EINVAL, command_flags=1 << 5),
    Fault("an item the command does not know", 1, EINVAL, command_item="unknown"),
    Fault("an unknown flag of the message", 2, EINVAL, needs=1 << 6),
    Fault("an item the message does not know", 2, EINVAL, item="unknown"),
    Fault("an empty vector", 2, EINVAL, item="empty vector"),
    Fault("a memfd that is no descriptor", 2, EBADF, item="memfd -1"),
    Fault("a canceller that is not open", 3, EBADF, command_item="closed canceller"),
    Fault("a canceller that cannot be polled", 4, EINVAL, command_item="null canceller"),
    Fault("somebody else's id", 5, EINVAL, {"src": 9998}),
    Fault("a notification's payload type", 6, EINVAL, {"payload_type": 0}),
    Fault("a broadcast that is no signal", 7, EBADMSG, to_everybody(), forbids=SIGNAL),
    Fault("a broadcast with a deadline or cookie", 8, ENOTUNIQ, to_everybody(last=LATER), needs=SIGNAL),
    Fault("a request without deadline", 9, EINVAL, {"last": 0}, needs=EXPECT_REPLY),
    Fault("a signal that asks", 10, ENOTUNIQ, {"last": LATER}, needs=EXPECT_REPLY | SIGNAL),
    Fault("a synchronous call that does not ask", 11, EINVAL, forbids=EXPECT_REPLY, command_flags=SYNC_REPLY),
    Fault("a signal that answers", 12, EINVAL, {"last": LATER}, needs=SIGNAL, forbids=EXPECT_REPLY),
    Fault("too much payload", 13, EMSGSIZE, item="large vectors"),
    Fault("payload that overflows", 13, EMSGSIZE, item="overflowing vectors"),
    Fault("payload nobody can have", 14, EFAULT, item="high vector"),
    Fault("a memfd that overflows", 15, EMSGSIZE, item="overflowing memfd"),
    Fault("17 memfds", 16, E2BIG, item="17 memfds"),
    Fault("17 descriptors", 17, EMFILE, item="17 fds", kind=FDS),
    Fault("a filter of half a word", 18, EFAULT, item="filter 60", kind=FILTER),
    Fault("a filter of the wrong size", 18, EDOM, item="filter 128", kind=FILTER),
    Fault("a filter of no size", 18, EDOM, item="filter 0", kind=FILTER),
    Fault("a malformed name", 19, EINVAL, item="malformed name", kind=DST_NAME),
    Fault(
        "a broadcast to a name", 20, EBADMSG, to_everybody(), needs=SIGNAL, item="free name", kind=DST_NAME
    ),
    Fault("a filter without a signal", 21, EBADMSG, forbids=SIGNAL, item="filter", kind=FILTER),
    Fault("a signal without a filter", 21, EBADMSG, needs=SIGNAL, without=FILTER),
    Fault("no destination", 22, EDESTADDRREQ, {"dst": 0}, without=DST_NAME),
    Fault("a broadcast with descriptors", 23, ENOTUNIQ, to_everybody(), needs=SIGNAL, item="fd", kind=FDS),
    Fault("a descriptor below 0", 24, EBADF, item="fd -1", kind=FDS),
    Fault("a closed descriptor", 24, EBADF, item="closed fd", kind=FDS),
    Fault("a handle", 24, EOPNOTSUPP, item="handle", kind=FDS),
    Fault("a socket", 24, EOPNOTSUPP, item="socket", kind=FDS),
    Fault("a closed memfd", 24, EBADF, item="closed memfd"),
    Fault("a memfd that is an ordinary file", 24, EMEDIUMTYPE, item="file memfd"),
    Fault("a memfd that may change", 24, ETXTBSY, item="unsealed memfd"),
    Fault("a memfd that is too short", 24, EFAULT, item="short memfd"),
    Fault("an id nobody has", 25, ENXIO, {"dst": 9999}, without=DST_NAME),
    Fault("a name nobody has", 25, ESRCH, {"dst": 0}, item="free name", kind=DST_NAME),
    Fault("a name somebody else has", 25, EREMCHG, {"dst": OTHER}, item="activated name", kind=DST_NAME),
    Fault(
        "a name that is not running",
        25,
        EADDRNOTAVAIL,
        {"dst": 0},
        Msg.NO_AUTO_START,
        0,
        "activated name",
        DST_NAME,
    ),
    Fault("somebody who does not listen", 25, EPERM, {"dst": NOTHING}, without=DST_NAME),
]
ITEMS = range(13, 21)


class Scene:
    """A stranger who sends, and everything that a message can refer to."""

    def __init__(self, world: World) -> None:
        self.sender = world.connect(world.task(NOBODY))
        self.other = world.connect(world.task(NOBODY))
        self.owner = world.connect()
        self.holder = world.connect_activator(ACTIVATED)
        self.items = dict(make_items(self.sender))

    def send(self, *faults: Fault) -> None:
        """SEND a message with these faults, their items in this order."""
        sender = self.sender
        fields = {"dst": OTHER, "last": 0, "src": 0, "payload_type": layout.PAYLOAD_DBUS}
        needs = command_flags = 0
        for fault in faults:
            fields |= fault.fields
            needs |= fault.needs
            command_flags |= fault.command_flags
        if needs & EXPECT_REPLY and not any("last" in fault.fields for fault in faults):
            fields["last"] = LATER
        places = {OTHER: self.other.id, NOTHING: self.owner.id}
        items = [self.items[fault.item] for fault in faults if fault.item]
        has_filter = any(fault.kind == FILTER or fault.without == FILTER for fault in faults)
        if needs & SIGNAL and not has_filter:
            items.append(bloom_filter())
        message = sender.build_message(
            *items,
            dst=places.get(fields["dst"], fields["dst"]),
            flags=needs,
            src=fields["src"],
            payload_type=fields["payload_type"],
            deadline_ns=fields["last"],
        )
        command_items = [self.items[fault.command_item] for fault in faults if fault.command_item]
        sender.send_message(message, items=command_items, flags=command_flags)

    def refuse(self, errno: int, *faults: Fault) -> None:
        """SEND, which has to be refused like this."""
        try:
            with refused(errno):
                self.send(*faults)
        except BaseException as error:
            error.add_note(" and ".join(fault.what for fault in faults))
            raise


def make_items(sender: Client) -> Iterator[tuple[str, bytes]]:
    """Items that are wrong, by name."""
    task = sender.task
    null, sealed = task.open_null(), task.open_memfd(b"contents")
    yield "unknown", layout.item(99)
    yield "closed canceller", layout.cancel_fd(999)
    yield "null canceller", layout.cancel_fd(null)
    yield "empty vector", vec_at(0, 0)
    yield "memfd -1", memfd(-1, 8)
    yield "large vectors", vec_at(0, 2**21) + vec_at(0, 1)
    yield "overflowing vectors", vec_at(0, 2**64 - 1) + vec_at(0, 2)
    yield "high vector", vec_at(2**64 - 8, 8)
    yield "overflowing memfd", memfd(sealed, 2**64 - 1, 1)
    yield "17 memfds", memfd(sealed, 8) * 17
    yield "17 fds", fds([null] * 17)
    yield "filter 60", bloom_filter(bytes(60))
    yield "filter 128", bloom_filter(bytes(128))
    yield "filter 0", bloom_filter(b"")
    yield "filter", bloom_filter()
    yield "malformed name", string(DST_NAME, "foo..bar")
    yield "free name", string(DST_NAME, FREE_NAME)
    yield "activated name", string(DST_NAME, ACTIVATED)
    yield "fd", fds([null])
    yield "fd -1", fds([null, -1])
    yield "closed fd", fds([null, 999])
    yield "handle", fds([null, sender.fd])
    yield "socket", fds([task.open_socket()])
    yield "closed memfd", memfd(999, 8)
    yield "file memfd", memfd(null, 8)
    yield "unsealed memfd", memfd(task.open_memfd(b"contents", F_SEAL_ALL & ~layout.F_SEAL_WRITE), 8)
    yield "short memfd", memfd(sealed, 8, 1)


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world)


def fit(first: Fault, second: Fault) -> bool:
    """Whether one message can have both faults."""
    for one, other in ((first, second), (second, first)):
        if one.needs & other.forbids or (one.without and one.without == other.kind):
            return False
        if one.fields.get("last") == 0 and other.fields.get("last"):
            return False
    if first.kind and first.kind == second.kind:
        return False
    if first.command_item and second.command_item:
        return False
    together = {**first.fields, **second.fields}
    if together.get("dst") == DST_BROADCAST and together.get("last") and 8 not in (first.place, second.place):
        return False  # two that make a third
    shared = first.fields.keys() & second.fields.keys()
    return all(first.fields[field] == second.fields[field] for field in shared)


def names(faults: list[Fault]) -> list[str]:
    return [fault.what for fault in faults]


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_a_fault_is_told(world: World, scene: Scene, fault: Fault) -> None:
    scene.refuse(fault.errno, fault)
    for client in (scene.other, scene.owner, scene.holder):
        assert not client.is_readable


@pytest.mark.parametrize("first", FAULTS, ids=names(FAULTS))
def test_of_two_faults_the_earlier_is_told(scene: Scene, first: Fault) -> None:
    later = [second for second in FAULTS if second.place > first.place and fit(first, second)]
    for second in later:
        if not (first.place in ITEMS and second.place in ITEMS):
            scene.refuse(first.errno, first, second)
            scene.refuse(first.errno, second, first)


@pytest.mark.parametrize("first", [fault for fault in FAULTS if fault.place in (*ITEMS, 24)])
def test_of_two_items_the_first_that_is_wrong_is_told(scene: Scene, first: Fault) -> None:
    group = ITEMS if first.place in ITEMS else range(24, 25)
    for second in FAULTS:
        # a fault whose header alone tells it as well is not one of an item
        if second is not first and second.place in group and second.item and fit(first, second):
            scene.refuse(first.errno, first, second)
            scene.refuse(second.errno, second, first)


def test_a_good_message_has_no_fault(scene: Scene) -> None:
    scene.send()
    assert scene.other.recv().src_id == scene.sender.id


def test_most_faults_can_be_combined() -> None:
    pairs = sum(fit(one, other) for one in FAULTS for other in FAULTS if one.place < other.place)
    assert pairs > 500


def test_who_may_not_send_is_told_before_anything(world: World, scene: Scene) -> None:
    for special in (world.connect_monitor(), scene.holder, world.connect_holder("a.b")):
        with refused(EOPNOTSUPP):
            special.command(layout.SEND, layout.item(99), flags=1 << 5, msg_address=1)


def test_nothing_of_a_refused_message_remains(world: World, scene: Scene) -> None:
    task = scene.sender.task
    held = [task.description(fd).references for fd in task.fds()]
    for fault in FAULTS:
        scene.refuse(fault.errno, fault)
    assert [task.description(fd).references for fd in task.fds()] == held
    assert not scene.other.connection.quota.shares
    assert scene.sender.connection.outstanding == 0


# Where the boundaries are


@pytest.mark.parametrize(
    ("build", "errno"),
    [
        (lambda: vec_at(0, 2**21), 0),
        (lambda: vec_at(0, 2**21 + 1), EMSGSIZE),
        (lambda: vec_at(0, 2**20) * 2, 0),
        (lambda: vec_at(0, 2**20) * 2 + vec_at(0, 1), EMSGSIZE),
        (lambda: vec_at(0, 2**63) + vec_at(0, 2**63), EMSGSIZE),
        (lambda: string(DST_NAME, "a." + "b" * 253), ESRCH),
        (lambda: string(DST_NAME, "a." + "b" * 254), EINVAL),
        (lambda: string(DST_NAME, "a.1b"), EINVAL),
        (lambda: string(DST_NAME, "a.-b"), ESRCH),
        (lambda: string(DST_NAME, "a.b_2"), ESRCH),
        (lambda: string(DST_NAME, "a"), EINVAL),
        (lambda: string(DST_NAME, ":1.5"), EINVAL),
        (lambda: string(DST_NAME, b"a.\xe4"), EINVAL),
        (lambda: string(DST_NAME, ""), EINVAL),
        (lambda: layout.item(DST_NAME, b"a.b"), EINVAL),
        (lambda: layout.item(DST_NAME, b"a.b\0c\0"), EINVAL),
    ],
)
def test_the_boundaries(scene: Scene, build: Callable[[], bytes], errno: int) -> None:
    item = build()
    dst = 0 if item[8] == DST_NAME else scene.other.id
    message = scene.sender.build_message(item, dst=dst)
    if errno:
        with refused(errno):
            scene.sender.send_message(message)
    else:
        scene.sender.send_message(message)
        assert len(scene.other.recv().payload) == 2**21


@pytest.mark.parametrize(("size", "start", "errno"), [(8, 0, 0), (1, 7, 0), (9, 0, EFAULT), (1, 8, EFAULT)])
@pytest.mark.parametrize("seals", [F_SEAL_ALL, 0, None])
def test_what_a_memfd_is_comes_before_how_long_it_is(
    scene: Scene, size: int, start: int, errno: int, seals: int | None
) -> None:
    fd = scene.sender.task.open_memfd(b"contents", seals)
    expected = {F_SEAL_ALL: errno, 0: ETXTBSY, None: EMEDIUMTYPE}[seals]
    message = scene.sender.build_message(memfd(fd, size, start), dst=scene.other)
    if expected:
        with refused(expected):
            scene.sender.send_message(message)
    else:
        scene.sender.send_message(message)
        assert scene.other.recv().payload == b"contents"[start : start + size]


def test_a_command_and_a_message_may_have_32_kib(scene: Scene) -> None:
    room = layout.MAX_COMMAND_SIZE - layout.MSG_SIZE
    count = room // 32
    assert count * 32 == room
    scene.sender.send_items(vec_at(0, 1) * count, dst=scene.other)
    assert scene.other.recv().payload == bytes(count)
    with refused(EMSGSIZE):
        scene.sender.send_items(vec_at(0, 1) * (count + 1), dst=scene.other)


# A bus with filters of another size


@pytest.mark.parametrize(
    ("size", "errno"), [(8, 0), (16, EDOM), (64, EDOM), (0, EDOM), (12, EFAULT), (4, EFAULT)]
)
def test_a_filter_has_the_size_that_the_bus_says(world: World, size: int, errno: int) -> None:
    maker = world.make_bus("1000-other", bloom=layout.bloom_parameter(8))
    client = world.connect(node=world.find_endpoint(bus="1000-other"))
    if errno:
        with refused(errno):
            client.send_items(bloom_filter(bytes(size)), dst=DST_BROADCAST, flags=SIGNAL)
    else:
        client.signal(bits=bytes(size))
    maker.close()


# Delivery


def test_who_owns_a_name_is_asked_before_whether_it_runs(scene: Scene) -> None:
    with refused(EREMCHG):
        scene.sender.send_small(scene.other, name=ACTIVATED, flags=Msg.NO_AUTO_START)
    with refused(EADDRNOTAVAIL):
        scene.sender.send_small(scene.holder, name=ACTIVATED, flags=Msg.NO_AUTO_START)
    with refused(EPERM):
        scene.sender.send_small(scene.holder, name=ACTIVATED)


def test_a_name_that_is_owned_needs_no_start(world: World, scene: Scene) -> None:
    owner = world.connect()
    owner.name_acquire(ACTIVATED)
    world.connect().send_small(name=ACTIVATED, flags=Msg.NO_AUTO_START)
    owner.recv()


def test_a_name_that_is_only_waited_for_is_not_the_waiters(world: World) -> None:
    first, second, sender = (world.connect() for _ in range(3))
    first.name_acquire("a.b")
    second.name_acquire("a.b", layout.Name.QUEUE)
    with refused(EREMCHG):
        sender.send_small(second, name="a.b")
    sender.send_small(first, name="a.b")
    first.name_release("a.b")
    with refused(EREMCHG):
        sender.send_small(first, name="a.b")
    assert len(first.drain()) == 1


def test_whether_somebody_may_is_asked_before_whether_there_is_room(world: World, scene: Scene) -> None:
    deaf = world.connect(accept_fd=False, pool_size=layout.PAGE)
    with refused(EPERM):
        scene.sender.send_items(
            fds([scene.sender.task.open_null()]),
            vec_at(scene.sender.task.constant(bytes(9000)), 9000),
            dst=deaf,
        )


def test_too_many_requests_are_told_before_descriptors_and_room(world: World) -> None:
    sender, patient = world.connect(), world.connect()
    for cookie in range(128):
        sender.send_small(patient, cookie=cookie, flags=EXPECT_REPLY, timeout_ms=100)
    deaf = world.connect(accept_fd=False, pool_size=layout.PAGE)
    items = (fds([sender.task.open_null()]), sender.vec(bytes(9000)))
    with refused(EMLINK):
        sender.send_items(*items, dst=deaf, flags=EXPECT_REPLY, timeout_ms=100)
    with refused(ECOMM):
        sender.send_items(*items, dst=deaf)
    with refused(ENOBUFS):
        sender.send_items(items[1], dst=deaf)


def test_memory_is_asked_for_before_descriptors_on_their_way(world: World) -> None:
    sender, receiver = world.connect(), world.connect(pool_size=layout.PAGE, attach_recv=0)
    null = fds([sender.task.open_null()] * 16)
    sender.send_items(null, dst=receiver)
    with refused(EMFILE):
        sender.send_items(null, dst=receiver)
    with refused(ENOBUFS):
        sender.send_items(null, sender.vec(bytes(layout.PAGE)), dst=receiver)
    receiver.recv().close_fds()


def test_a_reply_is_not_judged_like_a_message(world: World, scene: Scene) -> None:
    """Nobody may talk to the owner, but whom it asked may answer, once."""
    with refused(EPERM):
        scene.sender.send_small(scene.owner)
    with refused(EBADSLT):
        scene.sender.reply(scene.owner, 7)
    scene.owner.send_small(scene.sender, cookie=7, flags=EXPECT_REPLY, timeout_ms=100)
    scene.sender.reply(scene.owner, 7)
    with refused(EBADSLT):
        scene.sender.reply(scene.owner, 7)
    with refused(ENXIO):
        scene.sender.reply(9999, 7)
    assert scene.owner.recv().cookie_reply == 7
    scene.sender.recv()
    with refused(EAGAIN):
        scene.owner.recv()
