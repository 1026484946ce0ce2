"""A native connection on the bus of `support.proxy`, beside its clients: calls, signals, and what it finds.

Like `proxy`, this stands inside the process: a `Neighbour` is a connection of the broker with a pool, and
what it sends and receives are D-Bus messages in the native form. Nothing waits: what a command of either
side has caused is there when the command returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from busproxy.match_entries import core_rule, message_filter, own_signal_entries, rule_entries
from busproxy.remarshal import GVariantMessage, build_gvariant, parse_gvariant
from busproxy.wire.gvariant import NATIVE_LITTLE_ENDIAN, encode
from busproxy.wire.header import NO_AUTO_START, NO_REPLY_EXPECTED
from busproxy.wire.match_rules import parse_match_rule
from kdbus_core.abi import (
    ATTACH_ALL,
    DST_BROADCAST,
    MSG,
    PAGE_SIZE,
    PAYLOAD_DBUS,
    SRC_KERNEL,
    ZERO_FILL,
    HelloFlag,
    ItemType,
    MessageFlag,
)
from kdbus_core.caller import File
from kdbus_core.connection import Connection, Limits
from kdbus_core.items import FD, MEMFD, NAME_NOTICE, VEC, Item, iterate_items
from kdbus_core.message import DstName, Fds, Message, MessageItem, Vec
from kdbus_core.metadata import Credentials, Process
from kdbus_core.pool import Pool
from kdbus_core.synchronous import SyncCall
from kdbus_core.transport.files import OpenFile
from support.proxy import OWNER_UID, World
from support.raw import ERROR, METHOD_CALL, METHOD_RETURN, SIGNAL

FAR = 1 << 60
"""A deadline that does not come."""


@dataclass
class Mail:
    """A message out of a pool; `dbus` is None in a notification of the broker."""

    source: int
    destination: int
    flags: int
    cookie: int
    last: int
    items: list[Item]
    payload: bytes
    dbus: GVariantMessage | None
    fds: list[int] = field(default_factory=list)

    @property
    def parsed(self) -> GVariantMessage:
        assert self.dbus is not None, self.words
        return self.dbus

    @property
    def body(self) -> list[Any]:
        return self.parsed.values()

    @property
    def kinds(self) -> list[ItemType]:
        return [ItemType(item.type) for item in self.items]

    @property
    def words(self) -> str:
        """What it is, in a few words."""
        if self.dbus is not None:
            what = self.dbus.member or self.dbus.error_name or "reply"
            return f"{what} from {self.source}"
        item = self.items[0]
        kind = ItemType(item.type)
        if kind in (ItemType.REPLY_DEAD, ItemType.REPLY_TIMEOUT):
            return f"{kind.name} {self.last}"
        if kind in (ItemType.ID_ADD, ItemType.ID_REMOVE):
            return kind.name
        return f"{kind.name} {item.payload[NAME_NOTICE.size : -1].decode('ascii')}"


class Neighbour:
    """A native connection, of the bus' owner unless told otherwise."""

    def __init__(
        self,
        world: World,
        *,
        uid: int = OWNER_UID,
        flags: HelloFlag = HelloFlag.ACCEPT_FD,
        name: str | None = None,
        pages: int = 256,
        attach_recv: int = 0,
        limits: Limits = Limits(),  # noqa: B008 - a constant
    ) -> None:
        self.world = world
        self.bus = world.bus
        self.connection: Connection = self.bus.hello(
            self.bus.endpoint,
            Process.of(Credentials(uid=uid, gid=uid, pid=os.getpid())),
            pool=Pool(pages * PAGE_SIZE),
            flags=flags,
            name=name,
            attach_send=ATTACH_ALL,
            attach_recv=attach_recv,
            limits=limits,
        )
        self.unique_name = f":1.{self.connection.id}"
        self._cookie = 0

    def next_cookie(self) -> int:
        self._cookie += 1
        return self._cookie

    # Sending

    def build(
        self,
        type: int,
        destination: str | None,
        signature: str = "",
        *values: Any,
        cookie: int | None = None,
        flags: int = 0,
        path: str | None = "/a",
        interface: str | None = "a.b",
        member: str | None = None,
        error_name: str | None = None,
        reply_to: int = 0,
        reply_cookie: int | None = None,
        timeout_ns: int = FAR,
        fds: Sequence[int] = (),
        unix_fds: int | None = None,
        payload: Sequence[MessageItem] | None = None,
        payload_type: int = PAYLOAD_DBUS,
        header_cookie: int | None = None,
        send_flags: int | None = None,
    ) -> Message:
        """A message, right unless told otherwise; `fds` are borrowed."""
        cookie = self.next_cookie() if cookie is None else cookie
        is_reply = type in (METHOD_RETURN, ERROR)
        parts = build_gvariant(
            type,
            (cookie or 1) if header_cookie is None else header_cookie,
            flags=flags,
            path=None if is_reply else path,
            interface=None if is_reply else interface,
            member=member,
            error_name=error_name,
            destination=destination,
            reply_cookie=reply_to if reply_cookie is None else reply_cookie,
            signature=signature,
            body=encode(signature, list(values), little_endian=NATIVE_LITTLE_ENDIAN),
            unix_fds=len(fds) if unix_fds is None else unix_fds,
        )
        data = b"".join(parts)
        items: list[MessageItem] = list(payload) if payload is not None else [Vec(data)]
        kernel_flags = _flags_of(type, flags) if send_flags is None else send_flags
        if kernel_flags & MessageFlag.SIGNAL:
            arguments = [
                (code, value) if code in ("s", "o", "g") else None
                for code, value in zip(signature, values, strict=False)
            ]
            items.append(
                message_filter(
                    self.bus.bloom, path=path, interface=interface, member=member, arguments=arguments
                )
            )
        dst_id = 0
        if destination is None:
            dst_id = DST_BROADCAST
        elif destination[0] == ":":
            dst_id = int(destination.removeprefix(":1."))
        else:
            items.append(DstName(destination))
        if fds:
            items.append(Fds(tuple(OpenFile(os.dup(fd)) for fd in fds)))
        return Message(
            items,
            flags=kernel_flags,
            dst_id=dst_id,
            cookie=cookie,
            payload_type=payload_type,
            timeout_ns=timeout_ns if kernel_flags & MessageFlag.EXPECT_REPLY else 0,
            cookie_reply=reply_to,
        )

    def send(self, message: Message) -> int:
        """Send what was built; returns its cookie."""
        self.bus.send(self.connection, message)
        return message.cookie

    def call(
        self, destination: str, signature: str = "", *values: Any, member: str = "M", **options: Any
    ) -> int:
        return self.send(self.build(METHOD_CALL, destination, signature, *values, member=member, **options))

    def wait(self, destination: str, on_done: Callable[[SyncCall], None]) -> SyncCall:
        """Call and wait (SYNC_REPLY)."""
        message = self.build(METHOD_CALL, destination, member="M")
        return self.bus.call(self.connection, message, on_done)

    def signal(
        self,
        destination: str | None = None,
        signature: str = "",
        *values: Any,
        member: str = "S",
        **options: Any,
    ) -> int:
        flags = options.pop("flags", NO_REPLY_EXPECTED)
        return self.send(
            self.build(SIGNAL, destination, signature, *values, member=member, flags=flags, **options)
        )

    def answer(self, mail: Mail, signature: str = "", *values: Any, **options: Any) -> int:
        return self.send(
            self.build(
                METHOD_RETURN,
                f":1.{mail.source}",
                signature,
                *values,
                flags=NO_REPLY_EXPECTED,
                reply_to=mail.cookie,
                **options,
            )
        )

    def refuse(self, mail: Mail, name: str, text: str) -> int:
        return self.send(
            self.build(
                ERROR,
                f":1.{mail.source}",
                "s",
                text,
                flags=NO_REPLY_EXPECTED,
                error_name=name,
                reply_to=mail.cookie,
            )
        )

    # Listening

    def add_match(self, cookie: int, rule: str) -> None:
        for entry in rule_entries(self.bus.bloom, core_rule(parse_match_rule(rule))):
            self.bus.match_add(self.connection, cookie, entry)

    def want_own_signals(self, cookie: int) -> None:
        for entry in own_signal_entries(self.connection.id):
            self.bus.match_add(self.connection, cookie, entry)

    # Receiving

    def mail(self) -> list[Mail]:
        """Everything that waits, in order; descriptors in it belong to the caller."""
        found: list[Mail] = []
        while True:
            fds: list[int] = []
            got = self.bus.receive(self.connection, 0, 0, partial(_install, fds))
            if got.errno:
                return found
            found.append(self._read(got.offset, got.size, fds))

    def one(self) -> Mail:
        (mail,) = self.mail()
        return mail

    def words(self) -> list[str]:
        """Everything that waits, each in a few words; descriptors are closed."""
        mails = self.mail()
        for mail in mails:
            for fd in mail.fds:
                os.close(fd)
        return [mail.words for mail in mails]

    def take(self, call: SyncCall) -> Mail:
        """The reply of a call that was waited for."""
        fds: list[int] = []
        offset, size, _ = call.take(partial(_install, fds))
        return self._read(offset, size, fds)

    def _read(self, offset: int, size: int, fds: list[int]) -> Mail:
        inbox = self.connection.inbox
        assert inbox is not None
        data = inbox.pool.memory.read(offset, size)
        inbox.pool.free(offset)
        length, flags, _, destination, source, _, cookie, last = MSG.unpack_from(data)
        items = list(iterate_items(data[:length], MSG.size))
        payload = b""
        passed: list[int] = []
        for item in items:
            if item.type == ItemType.PAYLOAD_OFF:
                count, start = VEC.unpack(item.payload)
                payload += bytes(count) if start == ZERO_FILL else data[start : start + count]
            elif item.type == ItemType.PAYLOAD_MEMFD:
                start, count, fd, _ = MEMFD.unpack(item.payload)
                payload += os.pread(fd, count, start)
                os.close(fd)
                fds.remove(fd)
            elif item.type == ItemType.FDS:
                passed = [number for (number,) in FD.iter_unpack(item.payload)]
        assert set(passed) - {-1} == set(fds)
        is_notice = source == SRC_KERNEL
        dbus = None if is_notice else parse_gvariant(payload)
        return Mail(source, destination, flags, cookie, last, items, payload, dbus, passed)

    def leave(self) -> None:
        self.bus.disconnect(self.connection)
        self.world.settle()


def _flags_of(type: int, flags: int) -> int:
    """What the broker is told of a message, be it valid or not."""
    found = MessageFlag(0)
    if type == METHOD_CALL and not flags & NO_REPLY_EXPECTED:
        found |= MessageFlag.EXPECT_REPLY
    if type == SIGNAL:
        found |= MessageFlag.SIGNAL
    if flags & NO_AUTO_START:
        found |= MessageFlag.NO_AUTO_START
    return int(found)


def _install(fds: list[int], file: File) -> int:
    assert isinstance(file, OpenFile)
    fds.append(os.dup(file.fileno()))
    return fds[-1]
