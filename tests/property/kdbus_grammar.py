"""Commands as a program might write them, and how they go wrong on the way.

`build_command` makes the struct and items of a command whose fields mean something in a `Scene`: ids of
connections that are there, descriptors that are open, slices that can be freed. `spoil` then breaks bytes:
sizes, flags, types, item boundaries. Every decision comes from `Choices`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from struct import pack, pack_into, unpack_from

from kdbus_choices import INTERESTING, Choices
from kdbus_errnos import FLAGS, LAYOUTS
from support.kdbus import layout
from support.kdbus.layout import ItemType

WELL_KNOWN = ("org.example.A", "org.example.B", "org.example.Activated", "org.example.Held", "org.example")
ODD_NAMES = (
    b"org.example.*",
    b"",
    b"org",
    b"org..example",
    b".org.example",
    b"org.example.",
    b":1.7",
    b"org.9example",
    b"org.ex\xc4mple",
    b"\xff\xfe",
    b"a" * 64,
    b"a." + b"b" * 253,
    b"a." + b"b" * 254,
    b"*",
    b"org.example\0A",
)
NODE_NAMES = (
    b"1000-made",
    b"2000-made",
    b"0-made",
    b"1000-test",
    b"1000-custom",
    b"made",
    b"1000-" + b"x" * 58,
)
UIDS = (0, 1000, 2000, 65534, layout.UNSET_ID)
BLOOM_SIZES = (layout.BLOOM_SIZE, 8)


@dataclass
class Scene:
    """What a command can refer to."""

    bloom_size: int = layout.BLOOM_SIZE
    now: int = 0
    ids: Sequence[int] = ()
    peers: Sequence[int] = ()
    """Those of the ids that can be sent to."""
    own_id: int = 0
    own_names: Sequence[str] = ()
    own_cookies: Sequence[int] = ()
    """Of matches and of calls that wait."""
    duties: Sequence[tuple[int, int]] = ()
    """To whom, and under which cookie, an answer is owed."""
    fds: Sequence[int] = ()
    memfds: Sequence[int] = ()
    events: Sequence[int] = ()
    offsets: Sequence[int] = ()
    addresses: Sequence[int] = ()
    """Where there is memory to send from, read-only and at the edge of what can be read."""
    place: Callable[[bytes], int] = field(default=lambda content: 0)
    """Puts bytes into the caller's memory and tells the address."""


def _name(choices: Choices) -> bytes:
    if choices.once_in(4):
        return choices.pick(ODD_NAMES) if not choices.once_in(4) else choices.blob(20)
    return choices.pick(WELL_KNOWN).encode()


def _own_name(choices: Choices, scene: Scene) -> bytes:
    """A name that the connection has, if it has one, else any."""
    if scene.own_names and not choices.once_in(4):
        return choices.pick(scene.own_names).encode()
    return _name(choices)


def _id(choices: Choices, scene: Scene) -> int:
    if choices.once_in(6):
        return choices.number()
    return choices.pick([*scene.ids, 0, layout.ANY])


def _fd(choices: Choices, usable: Sequence[int], scene: Scene) -> int:
    """A descriptor that is of use here, sometimes another one or none."""
    if choices.once_in(12):
        return choices.pick((-1, 9999, -(1 << 31), (1 << 31) - 1))
    return choices.pick([*scene.fds, 0] if choices.once_in(6) or not usable else usable)


def _uid(choices: Choices) -> int:
    return choices.number() if choices.once_in(6) else choices.pick(UIDS)


def _mask(choices: Choices) -> int:
    if choices.once_in(12):
        return choices.number()
    return choices.pick((layout.ATTACH_ALL, layout.ANY, 0, 1, 0x15, 0x3000))


def _bits(choices: Choices, size: int) -> bytes:
    fill = choices.pick((b"\0", b"\xff", b"\x55"))
    return choices.blob(8).ljust(size, fill)[:size]


def _bloom_size(choices: Choices, scene: Scene) -> int:
    return choices.below(200) if choices.once_in(8) else scene.bloom_size


def _strings(kind: ItemType) -> Callable[[Choices, Scene], bytes]:
    return lambda choices, scene: layout.string(kind, _name(choices))


def _notice(kind: ItemType) -> Callable[[Choices, Scene], bytes]:
    def build(choices: Choices, scene: Scene) -> bytes:
        numbers = pack("=4Q", _id(choices, scene), 0, _id(choices, scene), 0)
        return layout.item(kind, numbers + (_name(choices) + b"\0" if choices.once_in(2) else b""))

    return build


def _number(kind: ItemType, value: Callable[[Choices, Scene], int]) -> Callable[[Choices, Scene], bytes]:
    return lambda choices, scene: layout.number(kind, value(choices, scene))


def _negotiate(choices: Choices, scene: Scene) -> bytes:
    return layout.negotiate(*(choices.pick((*ItemType, 0, 99)) for _ in range(choices.below(6))))


def _vec(choices: Choices, scene: Scene) -> bytes:
    size = choices.pick((8, 1, 13, 4096, 200_000))
    if choices.once_in(8):
        size = choices.pick((0, layout.MAX_VEC_PAYLOAD, layout.MAX_VEC_PAYLOAD + 1, choices.number()))
    address = choices.number() if choices.once_in(12) else choices.pick([*scene.addresses, 0])
    return layout.vec_at(address, size)


def _memfd(choices: Choices, scene: Scene) -> bytes:
    size = choices.number() if choices.once_in(12) else choices.pick((16, 1, 4096, 13, 4097, 0))
    start = choices.number() if choices.once_in(12) else 0
    return layout.memfd(_fd(choices, scene.memfds, scene), size, start)


def _fds(choices: Choices, scene: Scene) -> bytes:
    count = 17 if choices.once_in(16) else choices.below(4)
    return layout.fds([_fd(choices, scene.fds[:2], scene) for _ in range(count)])


def _bloom_mask(choices: Choices, scene: Scene) -> bytes:
    count = choices.below(4)
    return layout.bloom_mask(*(_bits(choices, _bloom_size(choices, scene)) for _ in range(count)))


def _bloom_filter(choices: Choices, scene: Scene) -> bytes:
    generation = choices.number() if choices.once_in(6) else choices.below(3)
    return layout.bloom_filter(_bits(choices, _bloom_size(choices, scene)), generation)


def _bloom_parameter(choices: Choices, scene: Scene) -> bytes:
    size = choices.number() if choices.once_in(4) else choices.pick(BLOOM_SIZES)
    return layout.bloom_parameter(size, choices.number() if choices.once_in(4) else 1)


def _access(choices: Choices, scene: Scene) -> bytes:
    level = choices.number() if choices.once_in(8) else choices.below(3)
    kind = choices.number() if choices.once_in(8) else 1 + choices.below(3)
    return layout.access(kind, level, _uid(choices))


def _creds(choices: Choices, scene: Scene) -> bytes:
    if choices.once_in(3):
        return layout.creds(*(_uid(choices) for _ in range(8)))
    uid = _uid(choices)
    return layout.creds(uid, uid, uid, uid, uid, uid, uid, uid)


def _pids(choices: Choices, scene: Scene) -> bytes:
    return layout.pids(*(choices.number() if choices.once_in(4) else choices.below(9999) for _ in range(3)))


def _groups(choices: Choices, scene: Scene) -> bytes:
    return layout.item(
        ItemType.AUXGROUPS, b"".join(pack("=Q", _uid(choices)) for _ in range(choices.below(4)))
    )


def _node_name(kind: ItemType) -> Callable[[Choices, Scene], bytes]:
    def build(choices: Choices, scene: Scene) -> bytes:
        if choices.once_in(4):
            return layout.string(kind, choices.blob(70))
        return layout.string(kind, choices.pick(NODE_NAMES))

    return build


BUILDERS: dict[int, Callable[[Choices, Scene], bytes]] = {
    ItemType.NEGOTIATE: _negotiate,
    ItemType.PAYLOAD_VEC: _vec,
    ItemType.PAYLOAD_MEMFD: _memfd,
    ItemType.FDS: _fds,
    ItemType.CANCEL_FD: lambda choices, scene: layout.cancel_fd(_fd(choices, scene.events, scene)),
    ItemType.BLOOM_PARAMETER: _bloom_parameter,
    ItemType.BLOOM_FILTER: _bloom_filter,
    ItemType.BLOOM_MASK: _bloom_mask,
    ItemType.DST_NAME: _strings(ItemType.DST_NAME),
    ItemType.MAKE_NAME: _node_name(ItemType.MAKE_NAME),
    ItemType.ATTACH_FLAGS_SEND: _number(ItemType.ATTACH_FLAGS_SEND, lambda choices, scene: _mask(choices)),
    ItemType.ATTACH_FLAGS_RECV: _number(ItemType.ATTACH_FLAGS_RECV, lambda choices, scene: _mask(choices)),
    ItemType.ID: _number(ItemType.ID, _id),
    ItemType.DST_ID: _number(ItemType.DST_ID, _id),
    ItemType.NAME: _strings(ItemType.NAME),
    ItemType.CREDS: _creds,
    ItemType.PIDS: _pids,
    ItemType.AUXGROUPS: _groups,
    ItemType.SECLABEL: _strings(ItemType.SECLABEL),
    ItemType.CONN_DESCRIPTION: _node_name(ItemType.CONN_DESCRIPTION),
    ItemType.POLICY_ACCESS: _access,
    ItemType.NAME_ADD: _notice(ItemType.NAME_ADD),
    ItemType.NAME_REMOVE: _notice(ItemType.NAME_REMOVE),
    ItemType.NAME_CHANGE: _notice(ItemType.NAME_CHANGE),
    ItemType.ID_ADD: lambda choices, scene: layout.id_rule(ItemType.ID_ADD, _id(choices, scene)),
    ItemType.ID_REMOVE: lambda choices, scene: layout.id_rule(ItemType.ID_REMOVE, _id(choices, scene)),
}

ESSENTIAL: dict[str, tuple[ItemType, ...]] = {
    "BUS_MAKE": (ItemType.MAKE_NAME, ItemType.BLOOM_PARAMETER),
    "DOMAIN_MAKE": (ItemType.MAKE_NAME,),
    "ENDPOINT_MAKE": (ItemType.MAKE_NAME,),
    "NAME_ACQUIRE": (ItemType.NAME,),
    "NAME_RELEASE": (ItemType.NAME,),
}
POSSIBLE: dict[str, tuple[ItemType, ...]] = {
    "BUS_MAKE": (ItemType.ATTACH_FLAGS_SEND, ItemType.ATTACH_FLAGS_RECV),
    "ENDPOINT_UPDATE": (ItemType.NAME, ItemType.POLICY_ACCESS, ItemType.POLICY_ACCESS),
    "HELLO": (
        ItemType.POLICY_ACCESS,
        ItemType.CONN_DESCRIPTION,
        ItemType.CREDS,
        ItemType.PIDS,
        ItemType.AUXGROUPS,
        ItemType.SECLABEL,
    ),
    "UPDATE": (
        ItemType.ATTACH_FLAGS_SEND,
        ItemType.ATTACH_FLAGS_RECV,
        ItemType.NAME,
        ItemType.POLICY_ACCESS,
    ),
    "CONN_INFO": (ItemType.NAME,),
    "SEND": (ItemType.CANCEL_FD,),
    "MATCH_ADD": (
        ItemType.BLOOM_MASK,
        ItemType.NAME,
        ItemType.ID,
        ItemType.DST_ID,
        ItemType.NAME_ADD,
        ItemType.NAME_REMOVE,
        ItemType.NAME_CHANGE,
        ItemType.ID_ADD,
        ItemType.ID_REMOVE,
    ),
}


def _items(choices: Choices, scene: Scene, name: str, flags: int) -> bytes:
    kinds: list[int] = list(ESSENTIAL.get(name, ()))
    if name == "HELLO" and flags & (layout.Hello.ACTIVATOR | layout.Hello.POLICY_HOLDER):
        kinds.append(ItemType.NAME)
    possible = POSSIBLE.get(name, ())
    if name == "SEND" and not flags & layout.SYNC_REPLY and not choices.once_in(8):
        possible = ()
    if possible:
        kinds += [choices.pick(possible) for _ in range(choices.pick((0, 0, 1, 2, 3)))]
    if name not in ("MATCH_ADD", "ENDPOINT_UPDATE") and not choices.once_in(16):
        kinds = list(dict.fromkeys(kinds))
    if choices.once_in(32):
        kinds.append(choices.pick(tuple(BUILDERS)))
    if choices.once_in(24):
        kinds.append(ItemType.NEGOTIATE)
    if name == "NAME_RELEASE" and kinds == [ItemType.NAME]:
        return layout.name(_own_name(choices, scene))
    return b"".join(BUILDERS[kind](choices, scene) for kind in kinds)


def _flags(choices: Choices, name: str) -> int:
    known = FLAGS.get(name, 0)
    flags = choices.below(256) & known
    if name == "HELLO" and not choices.once_in(6):
        flags = choices.pick((1, 0, 2, 4, 8, 9))
    if choices.once_in(24):
        flags |= layout.NEGOTIATE
    return flags | choices.number() if choices.once_in(24) else flags


def _build_message(choices: Choices, scene: Scene, *, is_call: bool) -> bytes:
    """A message of any kind, mostly one that could be delivered."""
    shape = choices.pick(("plain", "request", "reply", "broadcast", "signal", "anything"))
    if is_call and not choices.once_in(8):
        shape = "request"
    flags, last = 0, 0
    dst = _id(choices, scene) if choices.once_in(6) else choices.pick([*scene.peers, 0])
    kinds = [ItemType.PAYLOAD_VEC] if choices.once_in(2) else []
    match shape:
        case "plain":
            pass
        case "request":
            flags = layout.Msg.EXPECT_REPLY
            last = scene.now + choices.pick((10_000_000, 1, 1_000_000_000_000, 0))
        case "reply":
            dst, last = choices.pick([*scene.duties, (dst, 1)]) if not choices.once_in(6) else (dst, 2)
        case "broadcast":
            flags, dst = layout.Msg.SIGNAL, layout.DST_BROADCAST
            kinds.append(ItemType.BLOOM_FILTER)
        case "signal":
            flags = layout.Msg.SIGNAL
            kinds.append(ItemType.BLOOM_FILTER)
        case _:
            flags, last = choices.below(8), choices.number()
            kinds.append(ItemType.BLOOM_FILTER)
    if dst == 0 or choices.once_in(12):
        kinds.append(ItemType.DST_NAME)
    sendable = (ItemType.PAYLOAD_VEC, ItemType.PAYLOAD_MEMFD, ItemType.FDS, ItemType.NEGOTIATE)
    kinds += [choices.pick(sendable) for _ in range(choices.pick((0, 0, 0, 1, 2)))]
    items = b"".join(BUILDERS[kind](choices, scene) for kind in kinds)
    source = choices.number() if choices.once_in(16) else choices.pick((0, scene.own_id))
    payload_type = choices.number() if choices.once_in(16) else layout.PAYLOAD_DBUS
    priority = choices.pick((0, -5, 7, -(1 << 63), (1 << 63) - 1))
    cookie = choices.below(5)
    if choices.once_in(12):
        flags |= layout.Msg.NO_AUTO_START
    if choices.once_in(40):
        flags |= layout.NEGOTIATE
    size = layout.MSG_SIZE + len(items)
    header = pack("=2Qq5Q", size, flags, priority, dst, source, payload_type, cookie, last)
    return header + items


def _fields(choices: Choices, scene: Scene, name: str, flags: int) -> dict[str, int]:
    match name:
        case "HELLO":
            size = choices.number() if choices.once_in(12) else choices.pick((65536, 4096, 1 << 24))
            return {
                "attach_flags_send": _mask(choices),
                "attach_flags_recv": _mask(choices),
                "pool_size": size,
            }
        case "FREE":
            return {"offset": choices.number() if choices.once_in(4) else choices.pick([*scene.offsets, 0])}
        case "CONN_INFO" | "BUS_CREATOR_INFO":
            return {"id": _id(choices, scene), "attach_flags": _mask(choices)}
        case "RECV":
            return {"priority": choices.pick((0, -5, 7, -(1 << 63), (1 << 63) - 1))}
        case "MSG_CANCEL" | "MATCH_REMOVE" if scene.own_cookies and not choices.once_in(4):
            return {"cookie": choices.pick(scene.own_cookies)}
        case "MSG_CANCEL" | "MATCH_ADD" | "MATCH_REMOVE":
            return {"cookie": choices.number() if choices.once_in(12) else choices.below(5)}
        case "SEND":
            message = spoil(choices, _build_message(choices, scene, is_call=bool(flags)))
            address = scene.place(message)
            if choices.once_in(32):
                address = choices.pick((address + 1, address + 8, 0, address - 8, choices.number()))
            return {"msg_address": address}
        case _:
            return {}


def build_command(choices: Choices, scene: Scene, name: str) -> bytes:
    """A command that is right but for what is wrong in its scene."""
    command = LAYOUTS[name]
    flags = _flags(choices, name)
    fields = _fields(choices, scene, name, flags)
    items = _items(choices, scene, name, flags)
    return command.build(flags, command.size + len(items), fields) + items


def _set_size(choices: Choices, data: bytearray) -> None:
    size = choices.number() if choices.once_in(2) else len(data) + choices.below(41) - 20
    pack_into("=Q", data, 0, size & layout.ANY)


def _set_number(choices: Choices, data: bytearray) -> None:
    at = 8 * choices.below(max(1, len(data) // 8))
    if at + 8 <= len(data):
        pack_into("=Q", data, at, choices.pick(INTERESTING))


def _nudge_number(choices: Choices, data: bytearray) -> None:
    at = 8 * choices.below(max(1, len(data) // 8))
    if at + 8 <= len(data):
        (value,) = unpack_from("=Q", data, at)
        pack_into("=Q", data, at, (value + choices.pick((1, -1, 8, -8))) & layout.ANY)


def _flip_bit(choices: Choices, data: bytearray) -> None:
    if data:
        data[choices.below(len(data))] ^= 1 << choices.below(8)


def _cut(choices: Choices, data: bytearray) -> None:
    """Fewer bytes than the size says."""
    del data[choices.below(len(data) + 1) :]


def _shorten(choices: Choices, data: bytearray) -> None:
    """Fewer bytes, and the size says so."""
    _cut(choices, data)
    if len(data) >= 8:
        pack_into("=Q", data, 0, len(data))


def _repeat(choices: Choices, data: bytearray) -> None:
    """The items once more, as often as to fill a command."""
    tail = bytes(data[-8 * choices.below(20) :])
    data += tail * choices.pick((1, 2, 50))
    pack_into("=Q", data, 0, len(data))


def _extend(choices: Choices, data: bytearray) -> None:
    data += choices.blob(24)
    pack_into("=Q", data, 0, len(data))


def _swell(choices: Choices, data: bytearray) -> None:
    """To about the largest size there is."""
    data.extend(bytes(max(0, layout.MAX_COMMAND_SIZE + choices.below(33) - 16 - len(data))))
    pack_into("=Q", data, 0, len(data))


def _random_item(choices: Choices, data: bytearray) -> None:
    data.extend(bytes(-len(data) % 8))
    data += layout.item(choices.pick((*ItemType, 0, 0x1234, layout.ANY)), choices.blob(40))
    pack_into("=Q", data, 0, len(data))


SPOILERS = (
    _set_size,
    _set_number,
    _nudge_number,
    _flip_bit,
    _cut,
    _shorten,
    _repeat,
    _extend,
    _swell,
    _random_item,
)


def spoil(choices: Choices, data: bytes) -> bytes:
    """The bytes as they are, or broken in up to three places."""
    broken = bytearray(data)
    for _ in range(choices.pick((0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3))):
        spoiler = choices.pick(SPOILERS)
        if len(broken) >= 8:
            spoiler(choices, broken)
    return bytes(broken)
