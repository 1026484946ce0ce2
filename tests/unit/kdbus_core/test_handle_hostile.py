"""Any bytes at all: whatever lies where a command points to, the answer is an errno of the interface."""

from __future__ import annotations

from errno import (
    E2BIG,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAGAIN,
    EBADF,
    EBADFD,
    EBADMSG,
    EBADSLT,
    EBUSY,
    ECANCELED,
    ECOMM,
    ECONNREFUSED,
    EDESTADDRREQ,
    EDOM,
    EEXIST,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMLINK,
    EMSGSIZE,
    ENAMETOOLONG,
    ENOBUFS,
    ENOENT,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EPIPE,
    EREMCHG,
    EREMOTEIO,
    ESHUTDOWN,
    ESRCH,
    ETIMEDOUT,
    ETXTBSY,
    EXFULL,
    errorcode,
)
from random import Random

import pytest
from caller_world import OpenFile, sealed_memory
from handle_world import (
    BLOOM_SIZE,
    MONITOR,
    NAME,
    STRANGER,
    Client,
    HandleWorld,
    abi_struct,
    bloom_filter,
    build_command,
    build_message,
)

from kdbus_core.abi import Command, ItemType, MessageFlag, SendFlag
from kdbus_core.commands.connected import HANDLERS
from kdbus_core.commands.forms import FORMS, MESSAGE, Form
from kdbus_core.errors import KdbusError
from kdbus_core.handle import HandleState
from kdbus_core.items import ACCESS, FD, MEMFD, NAME_NOTICE, NUMBER, VEC, build_item

INTERESTING = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 24, 63, 64, 65, 72, 4095, 4096, 4097, 32768, 1 << 20]
INTERESTING += [(1 << bits) + offset for bits in (16, 21, 31, 32, 47, 63, 64) for offset in (-8, -1, 0, 1)]
NUMBERS = [number % (1 << 64) for number in INTERESTING]
STRINGS = [
    b"",
    b"a",
    NAME.encode(),
    b"com.example.*",
    b"1000-x",
    b"\xff\xfe",
    b"a\0b",
    b"x" * 300,
    b".",
    b"a..b",
]


class Mischief:
    """Builds commands that are nearly right."""

    def __init__(self, random: Random, client: Client) -> None:
        self.random = random
        self.thread = client.thread
        self.id = client.id if client.handle.connection is not None else 0

    def number(self) -> int:
        choice = self.random.random()
        if choice < 0.3:
            return self.random.choice(NUMBERS)
        if choice < 0.4:
            return self.id
        if choice < 0.5:
            return self.thread.put(bytes(self.random.choice([8, 64, 4096])))
        return self.random.randrange(8)

    def payload(self, type: int) -> bytes:
        """Mostly of the form of its type."""
        if self.random.random() < 0.15:
            return self.garbage()
        pick = self.random.choice
        match type:
            case ItemType.PAYLOAD_VEC:
                address = self.thread.put(bytes(pick([8, 64, 4096])))
                return VEC.pack(pick([1, 8, 13, 64, 4096, self.number()]), pick([0, address, self.number()]))
            case ItemType.PAYLOAD_MEMFD:
                return MEMFD.pack(
                    pick([0, 0, self.number()]), pick([8, 64, self.number()]), pick([4, 4, 3]), 0
                )
            case ItemType.FDS | ItemType.CANCEL_FD:
                count = 1 if type == ItemType.CANCEL_FD else pick([0, 1, 2, 17])
                return b"".join(FD.pack(pick([3, 3, 3, 4, 99, -1])) for _ in range(count))
            case ItemType.BLOOM_FILTER:
                return NUMBER.pack(self.number()) + self.random.randbytes(BLOOM_SIZE)
            case ItemType.BLOOM_MASK:
                return bytes(BLOOM_SIZE * pick([1, 1, 2, 0])) + bytes(pick([0, 0, 8]))
            case ItemType.BLOOM_PARAMETER:
                return VEC.pack(pick([8, 64, self.number()]), pick([1, self.number()]))
            case ItemType.CREDS:
                return b"".join(NUMBER.pack(pick([0, 7, (1 << 32) - 1])) for _ in range(8))
            case ItemType.POLICY_ACCESS:
                return ACCESS.pack(pick([1, 2, 3, 4]), pick([0, 1, 2, 3]), self.number())
            case ItemType.NAME_ADD | ItemType.NAME_REMOVE | ItemType.NAME_CHANGE:
                owners = NAME_NOTICE.pack(*(pick([self.number(), (1 << 64) - 1]) for _ in range(4)))
                return owners + pick([b"", NAME.encode() + b"\0", pick(STRINGS)])
            case ItemType.NAME | ItemType.DST_NAME:
                return pick([NAME.encode(), b"a.b", pick(STRINGS)]) + b"\0"
            case ItemType.MAKE_NAME | ItemType.CONN_DESCRIPTION | ItemType.SECLABEL:
                return pick([b"1000-x", b"1000-y", pick(STRINGS)]) + b"\0"
            case ItemType.ID_ADD | ItemType.ID_REMOVE:
                return VEC.pack(self.number(), 0)
            case ItemType.PIDS:
                return b"".join(NUMBER.pack(pick([0, 7, self.number()])) for _ in range(3))
            case _:
                return NUMBER.pack(pick([0, 1, self.number()]))

    def garbage(self) -> bytes:
        choice = self.random.random()
        if choice < 0.5:
            return self.random.choice(STRINGS) + b"\0" * self.random.choice([1, 1, 1, 0, 2])
        if choice < 0.7:
            return self.random.randbytes(self.random.randrange(80))
        count = self.random.choice([0, 1, 1, 2, 2, 3, 4, 8])
        return b"".join(NUMBER.pack(self.number()) for _ in range(count))

    def items(self, form: Form) -> bytes:
        types = list(form.items)
        if self.random.random() < 0.1:
            types += [*ItemType, self.number()]
        chosen = [self.random.choice(types) for _ in range(self.random.choice([0, 0, 1, 1, 2, 3, 5]))]
        if self.random.random() < 0.7:
            chosen = [
                *form.mandatory,
                *(type for type in dict.fromkeys(chosen) if type not in form.mandatory),
            ]
        built = b"".join(build_item(type, self.payload(type)) for type in chosen)
        if self.random.random() < 0.05:
            built = built[: self.random.randrange(len(built) + 1)]
        return built

    def flags(self, form: Form) -> int:
        choice = self.random.random()
        if choice < 0.85:
            return self.random.randrange(1 << 8) & self.random.randrange(1 << 8) & form.flags
        return 1 << 63 if choice < 0.93 else self.number()

    def command(self, command: Command) -> bytes:
        form = FORMS[command]
        struct = abi_struct(command)
        fields: list[int | bytes] = [self.number() for _ in range((struct.size - 24) // 8)]
        if command is Command.HELLO:
            fields = [*fields[:4], self.random.choice([4096, 1 << 20, fields[4]]), 0, 0, bytes(16)]
        elif command is Command.SEND and self.random.random() < 0.9:
            fields[0] = self.thread.put(self.message())
        elif command is Command.RECV:
            fields[0] = self.random.randrange(-(1 << 63), 1 << 63)
        data = build_command(command, *fields, flags=self.flags(form), items=[self.items(form)])
        return self.spoilt(data)

    def message(self) -> bytes:
        items = self.items(MESSAGE)
        flags = self.flags(MESSAGE)
        if self.random.random() < 0.5:  # a filter if, and only if, it is a signal
            flags &= ~MessageFlag.SIGNAL
        if flags & MessageFlag.SIGNAL and self.random.random() < 0.7:
            items = bloom_filter()
        message = build_message(
            flags=flags,
            priority=self.random.randrange(-(1 << 63), 1 << 63),
            dst_id=self.random.choice([0, self.id, 2, 3, 4, (1 << 64) - 1, self.number()]),
            src_id=self.random.choice([0, 0, 0, 0, self.id, 1]),
            payload_type=self.random.choice([1] * 9 + [0]),
            cookie=self.random.randrange(4),
            timeout_or_reply=self.random.choice([0, 0, 1, 2, 1 << 60, self.number()]),
            items=[items],
        )
        return self.spoilt(message)

    def spoilt(self, data: bytes) -> bytes:
        choice = self.random.random()
        if choice < 0.03:
            return data[: self.random.randrange(len(data))]
        if choice < 0.06:
            spoilt = bytearray(data)
            spoilt[self.random.randrange(len(data))] = self.random.randrange(256)
            return bytes(spoilt)
        if choice < 0.08:
            return self.number().to_bytes(8, "little") + data[8:]
        return data


def open_clients(world: HandleWorld) -> list[Client]:
    clients = [
        world.open(world.domain),
        world.maker,
        world.open(),
        world.make_endpoint()[0],
        world.connect(),
        world.connect(),
        world.connect(STRANGER, flags=0, pool_size=4096),
        world.connect(flags=MONITOR, pool_size=8192),
        world.connect_kind("activator"),
        world.connect(node=world.bus.endpoints["1000-door"]),
    ]
    for client in clients:
        client.thread.open(OpenFile())
        client.thread.open(sealed_memory())
    return clients


def choose(random: Random, clients: list[Client]) -> tuple[Client, Command]:
    """Mostly a command that the handle takes."""
    client = random.choice(clients)
    if random.random() < 0.1:
        return client, random.choice(list(Command))
    match client.handle.state:
        case HandleState.CONNECTED:
            often = [*[Command.SEND] * 12, *[Command.RECV] * 4, *[Command.MATCH_ADD] * 2]
            usual = [command for command in HANDLERS if command is not Command.BYEBYE]
            return client, random.choice([*often, *usual])
        case HandleState.EP_OWNER:
            return client, Command.ENDPOINT_UPDATE
        case _:
            return client, random.choice(
                [Command.HELLO, Command.ENDPOINT_MAKE, Command.BUS_MAKE, Command.DOMAIN_MAKE]
            )


OF_ALL = {0, EBADFD, ESHUTDOWN, EOPNOTSUPP, EFAULT, EINVAL, EMSGSIZE}
OF_COMMANDS: dict[Command, set[int]] = {
    Command.BUS_MAKE: {ENAMETOOLONG, EEXIST, EMFILE},
    Command.DOMAIN_MAKE: {EPERM, ENAMETOOLONG, EEXIST},
    Command.ENDPOINT_MAKE: {EPERM, ENAMETOOLONG, EEXIST},
    Command.ENDPOINT_UPDATE: {EEXIST},
    Command.HELLO: {EPERM, ENAMETOOLONG, ECONNREFUSED, EMFILE, EEXIST},
    Command.UPDATE: {E2BIG, EEXIST},
    Command.BYEBYE: {EBUSY},
    Command.FREE: {ENXIO},
    Command.CONN_INFO: {ESRCH, ENXIO, EXFULL},
    Command.BUS_CREATOR_INFO: {EXFULL},
    Command.LIST: {EXFULL},
    Command.NAME_ACQUIRE: {EPERM, E2BIG, EEXIST},
    Command.NAME_RELEASE: {ESRCH, EADDRINUSE},
    Command.MATCH_ADD: {EDOM, EMFILE},
    Command.MATCH_REMOVE: {EBADSLT},
    Command.MSG_CANCEL: {ENOENT},
    Command.RECV: {EAGAIN},
    Command.SEND: {
        *(EBADF, EBADMSG, ENOTUNIQ, E2BIG, EMFILE, EDOM, EDESTADDRREQ, EMEDIUMTYPE, ETXTBSY),
        *(ESRCH, EREMCHG, EADDRNOTAVAIL, ENXIO, EPERM, EMLINK, ECOMM, ENOBUFS, EXFULL, EBADSLT),
        *(ETIMEDOUT, EPIPE, EREMOTEIO, ECANCELED),
    },
}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_asked_ends_in_success_or_in_an_errno(seed: int) -> None:
    random = Random(seed)
    world = HandleWorld()
    clients = open_clients(world)
    outcomes: set[tuple[Command, int]] = set()
    for _ in range(1500):
        client, command = choose(random, clients)
        data = Mischief(random, client).command(command)
        address = client.thread.put(data, writable=random.random() < 0.97)
        if random.random() < 0.02:
            address += random.randrange(16)
        try:
            client.handle.ioctl(client.thread, command, address)
            outcomes.add((command, 0))
        except KdbusError as error:
            outcomes.add((command, error.errno))
        client.handle.poll()
        world.clock.now += random.choice([0, 1, 1 << 20])
        world.bus.expire_replies(world.clock.now)
        del client.thread.blocks[:-200]
    assert (Command.SEND, 0) in outcomes  # not only refusals
    for command, errno in outcomes:
        assert errno in OF_ALL | OF_COMMANDS.get(command, set()), (command.name, errorcode[errno])


def files_of(clients: list[Client]) -> set[OpenFile]:
    return {reference.file for client in clients for reference in client.thread.fds.values()}


@pytest.mark.parametrize("seed", range(40, 60))
def test_whatever_was_asked_nothing_of_it_is_left_when_all_handles_are_closed(seed: int) -> None:
    random = Random(seed)
    world = HandleWorld()
    clients = open_clients(world)
    for _ in range(250):
        client = random.choice(clients[4:6])
        command = random.choice([Command.SEND, Command.SEND, Command.RECV, Command.MATCH_ADD])
        data = Mischief(random, client).command(command)
        if command is Command.SEND and random.random() < 0.3:
            data = data[:8] + int(SendFlag.SYNC_REPLY).to_bytes(8, "little") + data[16:]
        address = client.thread.put(data)
        try:
            client.handle.ioctl(client.thread, command, address)
        except KdbusError:
            continue
    files = files_of(clients)
    for client in clients:
        client.handle.close()
    in_tables = [reference.file for client in clients for reference in client.thread.fds.values()]
    for file in files:
        assert file.references == in_tables.count(file)
        assert not file.watchers
    assert not world.bus.connections
    assert not world.domain.buses
