"""A connection but for its messages: HELLO and what follows, names, matches, questions, the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import decode, layout
from .layout import ATTACH_ALL, LIST_ALL, POOL_SIZE, Hello, ItemType
from .node import OpenNode
from .received import Info, parse_infos
from .refusal import Answer
from .task import Task

if TYPE_CHECKING:
    from kdbus_core.domain import Domain
    from kdbus_core.endpoint import Endpoint
    from kdbus_core.pool import Pool

    from .world import World

DESCRIPTION = "this-is-my-name"


class Connected(OpenNode):
    """A handle that said, or will say, HELLO; `unfreed` are the offsets of slices that it has to FREE."""

    def __init__(self, world: World, task: Task, node: Domain | Endpoint) -> None:
        super().__init__(world, task, node)
        self.unfreed: set[int] = set()

    def hello(
        self,
        *items: bytes,
        flags: int = 0,
        accept_fd: bool = True,
        attach_send: int = ATTACH_ALL,
        attach_recv: int = ATTACH_ALL,
        pool_size: int = POOL_SIZE,
        description: str | None = DESCRIPTION,
        keep: bool = False,
    ) -> Answer:
        """HELLO; its slice is read, checked and freed."""
        if description is not None:
            items = (layout.string(ItemType.CONN_DESCRIPTION, description), *items)
        answer = self.command(
            layout.HELLO,
            *items,
            flags=flags | (Hello.ACCEPT_FD if accept_fd else 0),
            attach_flags_send=attach_send,
            attach_flags_recv=attach_recv,
            pool_size=pool_size,
        )
        self.finish_hello(answer, pool_size)
        if not keep:
            self.free(answer["offset"])
        return answer

    def finish_hello(self, answer: Answer, pool_size: int) -> None:
        """Map the pool and read the answer: exactly one BLOOM_PARAMETER."""
        self.id = answer["id"]
        self.pool_size = pool_size
        self.pool: Pool = self.handle.map_pool(pool_size, writable=False)
        raw = self.read_pool(answer["offset"], answer["items_size"])
        self.unfreed.add(answer["offset"])
        assert len(raw) == 32
        assert [item.type for item in decode.walk(raw, 0, 32)] == [ItemType.BLOOM_PARAMETER]

    def byebye(self) -> Answer:
        return self.command(layout.BYEBYE)

    def update(self, *items: bytes) -> Answer:
        return self.command(layout.UPDATE, *items)

    def update_attach_flags(self, send: int | None = None, recv: int | None = None) -> Answer:
        items = []
        if send is not None:
            items.append(layout.number(ItemType.ATTACH_FLAGS_SEND, send))
        if recv is not None:
            items.append(layout.number(ItemType.ATTACH_FLAGS_RECV, recv))
        return self.update(*items)

    def update_policy(self, name: str, *accesses: bytes) -> Answer:
        return self.update(layout.name(name), *accesses)

    # The pool

    def read_pool(self, offset: int, size: int) -> bytes:
        """What the client sees in its mapping."""
        assert offset + size <= self.pool_size
        return bytes(self.pool.memory.read(offset, size))

    def free(self, offset: int) -> Answer:
        answer = self.command(layout.FREE, offset=offset)
        self.unfreed.discard(offset)
        return answer

    def take_slice(self, offset: int, size: int, *, keep: bool) -> bytes:
        """The bytes of an answer, whose slice is given back; an empty one is the pool's end."""
        assert offset % 8 == 0
        if offset == self.pool_size:
            assert size == 0
        else:
            self.unfreed.add(offset)
        raw = self.read_pool(offset, size)
        if not keep:
            self.free(offset)
        return raw

    # Names, matches

    def name_acquire(self, name: str | bytes, flags: int = 0) -> int:
        """NAME_ACQUIRE; returns the name's flags."""
        return self.command(layout.NAME_ACQUIRE, layout.name(name), flags=flags)["return_flags"]

    def name_release(self, name: str | bytes) -> Answer:
        return self.command(layout.NAME_RELEASE, layout.name(name))

    def add_match(self, *rules: bytes, cookie: int = 0, flags: int = 0) -> Answer:
        return self.command(layout.MATCH_ADD, *rules, cookie=cookie, flags=flags)

    def add_match_empty(self) -> Answer:
        """Every message of a connection, and no notification."""
        return self.add_match(layout.number(ItemType.ID, layout.ANY))

    def add_match_id(self, kind: ItemType, id: int = layout.ANY, *, cookie: int = 0) -> Answer:
        """An ID_ADD or ID_REMOVE match."""
        return self.add_match(layout.id_rule(kind, id), cookie=cookie)

    def add_match_name(self, kind: ItemType, name: str | None = None, *, cookie: int = 0) -> Answer:
        """A NAME_ADD, NAME_REMOVE or NAME_CHANGE match for any owners."""
        return self.add_match(layout.name_rule(kind, name), cookie=cookie)

    def remove_match(self, cookie: int) -> Answer:
        return self.command(layout.MATCH_REMOVE, cookie=cookie)

    # Questions

    def list_records(self, flags: int = LIST_ALL, *, keep: bool = False) -> list[Info]:
        answer = self.command(layout.LIST, flags=flags)
        return parse_infos(self.take_slice(answer["offset"], answer["list_size"], keep=keep))

    def list_names(self, flags: int = LIST_ALL) -> set[tuple[int, str, int]]:
        """All names of a LIST as (id, name, flags)."""
        return {(info.id, name, bits) for info in self.list_records(flags) for name, bits in info.names}

    def list_ids(self, flags: int = LIST_ALL) -> list[int]:
        """The ids of all records, in ascending order."""
        return sorted(info.id for info in self.list_records(flags))

    def conn_info(
        self,
        of: Connected | int = 0,
        *,
        name: str | bytes | None = None,
        mask: int = 0,
        keep: bool = False,
        task: Task | None = None,
    ) -> Info:
        items = () if name is None else (layout.name(name),)
        id = of if isinstance(of, int) else of.id
        answer = self.command(layout.CONN_INFO, *items, task=task, id=id, attach_flags=mask)
        return self._take_info(answer, keep=keep)

    def creator_info(self, mask: int = ATTACH_ALL, *, keep: bool = False) -> Info:
        return self._take_info(self.command(layout.BUS_CREATOR_INFO, attach_flags=mask), keep=keep)

    def _take_info(self, answer: Answer, *, keep: bool) -> Info:
        return Info(self.take_slice(answer["offset"], answer["info_size"], keep=keep))
