"""What native connections send each other, as tests look at it: files, mail, and those who wait for it."""

from __future__ import annotations

from collections.abc import Callable
from errno import errorcode

from kdbus_core import Connection
from kdbus_core.abi import MSG, PAGE_SIZE, ItemType
from kdbus_core.caller import File, FileKind
from kdbus_core.inbox import Inbox
from kdbus_core.items import ID_NOTICE, NAME_NOTICE, Item, iterate_items
from kdbus_core.synchronous import SyncCall


class SomeFile:
    """A file that is handed over; it must be closed once."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.kind = FileKind.ORDINARY
        self.seals: int | None = None
        self.size = PAGE_SIZE
        self.pollable = False
        self.is_closed = False

    def duplicate(self) -> SomeFile:
        raise AssertionError("a message owns its files, and nobody needs another reference")

    def close(self) -> None:
        assert not self.is_closed, f"{self.label} is closed twice"
        self.is_closed = True

    def watch(self, on_readable: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError(f"nobody waits for {self.label}: {on_readable}")


class Mail:
    """A message as it lies in a pool."""

    def __init__(self, data: bytes) -> None:
        size, self.flags, self.priority, self.dst, self.src, self.payload_type, self.cookie, self.last = (
            MSG.unpack_from(data)
        )
        self.items = list(iterate_items(data[:size], MSG.size))
        self.payload = data[size:]

    def item(self, type: ItemType) -> Item:
        (found,) = [item for item in self.items if item.type == type]
        return found

    @property
    def words(self) -> str:
        """`#cookie`, or what a notification says."""
        if self.payload_type:
            return f"#{self.cookie}"
        kind = ItemType(self.items[0].type)
        payload = self.items[0].payload
        match kind:
            case ItemType.REPLY_DEAD | ItemType.REPLY_TIMEOUT:
                return f"{kind.name} #{self.last}"
            case ItemType.ID_ADD | ItemType.ID_REMOVE:
                return f"{kind.name} {ID_NOTICE.unpack(payload)[0]}"
            case _:
                old, _, new, _ = NAME_NOTICE.unpack_from(payload)
                name = payload[NAME_NOTICE.size : -1].decode("ascii")
                return f"{kind.name} {name} {old}→{new}"


def inbox_of(connection: Connection) -> Inbox:
    assert connection.inbox is not None
    return connection.inbox


def look(connection: Connection, offset: int, size: int) -> Mail:
    """What lies in a connection's pool."""
    return Mail(inbox_of(connection).pool.memory.read(offset, size))


class Waiter:
    """A synchronous call and everything that became of it."""

    def __init__(self, caller: Connection, install: Callable[[File], int]) -> None:
        self.outcomes: list[str] = []
        self.call: SyncCall | None = None
        self._caller = caller
        self._install = install

    def on_done(self, call: SyncCall) -> None:
        assert call.done
        if call.errno:
            self.outcomes.append(errorcode[call.errno])
            return
        offset, size, incomplete = call.take(self._install)
        mail = look(self._caller, offset, size)
        inbox_of(self._caller).pool.free(offset)
        self.outcomes.append(mail.words + (" incomplete" if incomplete else ""))

    def interrupt(self) -> None:
        assert self.call is not None
        self.call.interrupt()
