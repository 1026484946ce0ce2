"""What native connections send each other, as tests look at it: files that are handed over, and mail."""

from __future__ import annotations

from collections.abc import Callable

from kdbus_core.abi import MSG, PAGE_SIZE, ItemType
from kdbus_core.caller import FileKind
from kdbus_core.items import ID_NOTICE, NAME_NOTICE, Item, iterate_items


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
