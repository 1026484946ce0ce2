"""What kdbusd is told to provide: buses with their policy, and custom endpoints with theirs.

The configuration is one TOML file.  It is read whole or not at all: `ConfigError` says which file and which
key is wrong, as a path (`bus[0].endpoint[1].policy[0].own[2]`, counted from 0), and why.  A key that is not
known is wrong, because a word that was misspelt would otherwise grant or refuse something in silence.

Names of buses and endpoints are the full ones, which begin with the owner's uid and a dash; `{uid}` in them
stands for that uid, so that one file serves whoever runs the daemon.

Nothing here is done, only understood; `kdbus_core.daemon.buses` does it.  Users and groups are looked up
by whoever calls (`Accounts`), so that this is the same everywhere.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, TypeVar

from kdbus_core.abi import (
    MAX_BLOOM_SIZE,
    MAX_CONNECTIONS_PER_USER,
    MAX_IN_FLIGHT_FDS,
    MAX_MATCHES,
    MAX_NAMES,
    MAX_OUTSTANDING_REQUESTS,
    MAX_POOL_SIZE,
    MAX_QUEUED_MESSAGES,
    MIN_BLOOM_SIZE,
    PAGE_SIZE,
    UNSET_ID,
    AccessLevel,
    AccessType,
    AttachFlag,
    MakeFlag,
)
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials
from kdbus_core.node import check_own_name
from kdbus_core.policy import Access, PolicyDatabase, PolicyEntry

_ACCESS = {
    "owner": MakeFlag(0),
    "group": MakeFlag.ACCESS_GROUP,
    "world": MakeFlag.ACCESS_GROUP | MakeFlag.ACCESS_WORLD,
}
_LEVELS = {"see": AccessLevel.SEE, "talk": AccessLevel.TALK, "own": AccessLevel.OWN}
_METADATA = {(flag.name or "").lower(): flag for flag in AttachFlag}
_EVERYBODY = "world"

T = TypeVar("T")


class ConfigError(Exception):
    """A configuration that cannot be used: `file`, the path of the key (empty: the file itself), and why."""

    def __init__(self, file: str, key: str, why: str) -> None:
        super().__init__(file, key, why)
        self.file = file
        self.key = key
        self.why = why

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.why}" if self.key else f"{self.file}: {self.why}"


class Accounts(NamedTuple):
    """Who there is: the uid of a user's name and the gid of a group's, KeyError for a name nobody has."""

    uid_of: Callable[[str], int]
    gid_of: Callable[[str], int]


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """A custom endpoint; `policy` is all that can be seen, talked to or owned through it."""

    name: str
    access: MakeFlag
    policy: tuple[PolicyEntry, ...]
    key: str = field(compare=False, default="")


@dataclass(frozen=True, slots=True)
class BusConfig:
    """A bus and whose it is; `key` is where in the file it stands."""

    name: str
    uid: int
    gid: int
    access: MakeFlag
    bloom: Bloom
    creator_metadata: AttachFlag
    required_metadata: AttachFlag
    policy: tuple[PolicyEntry, ...]
    endpoints: tuple[EndpointConfig, ...]
    key: str = field(compare=False, default="")


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Limits of the daemon, by the keys that set them; None is what it chooses itself.

    Those of a connection: how much it has of something, or how much of one user waits there.
    """

    max_pool_size: int = MAX_POOL_SIZE
    connections_per_user: int = MAX_CONNECTIONS_PER_USER
    names_per_connection: int = MAX_NAMES
    matches_per_connection: int = MAX_MATCHES
    requests_per_connection: int = MAX_OUTSTANDING_REQUESTS
    waiting_messages_per_user: int = MAX_QUEUED_MESSAGES
    waiting_fds_per_user: int = MAX_IN_FLIGHT_FDS
    handles: int | None = None
    handles_per_user: int | None = None
    open_files_per_user: int | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """All that a file says; without a file there are the defaults."""

    file: str = ""
    access: MakeFlag = _ACCESS["world"]
    limits: LimitsConfig = LimitsConfig()
    buses: tuple[BusConfig, ...] = ()


def load_config(path: Path, owner: Credentials, accounts: Accounts) -> Config:
    """Read a file; raises ConfigError, also when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(str(path), "", f"cannot be read: {why}") from error
    return parse_config(text, str(path), owner, accounts)


def parse_config(text: str, file: str, owner: Credentials, accounts: Accounts) -> Config:
    """Understand a configuration; buses that name no owner are `owner`'s.  Raises ConfigError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file, "", f"not TOML: {error}") from error
    return _Reader(file, owner, accounts).read(values)


class _Table:
    """A table of the file; what is taken out of it is checked, and what is left over is an error."""

    def __init__(self, file: str, key: str, value: object) -> None:
        self.file = file
        self.key = key
        if not isinstance(value, dict):
            raise ConfigError(file, key, f"has to be a table, not {_kind(value)}")
        self._values: dict[str, object] = dict(value)
        self._known: list[str] = []

    def path(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def error(self, name: str, why: str) -> ConfigError:
        return ConfigError(self.file, self.path(name), why)

    def take(self, name: str, type: type[T]) -> T | None:
        """A value of that type, None when it is not there."""
        self._known.append(name)
        value = self._values.pop(name, None)
        if value is None:
            return None
        # A boolean is an integer to Python, but not to whoever writes the file.
        if not isinstance(value, type) or (type is int and isinstance(value, bool)):
            raise self.error(name, f"has to be {_KINDS[type]}, not {_kind(value)}")
        return value

    def need(self, name: str, type: type[T]) -> T:
        """A value that has to be there."""
        value = self.take(name, type)
        if value is None:
            raise self.error(name, "is missing")
        return value

    def word(self, name: str, words: dict[str, T], default: str) -> T:
        """One of several words."""
        word = self.take(name, str)
        return self._meaning(name, default if word is None else word, words)

    def words(self, name: str, words: dict[str, T]) -> Iterator[T]:
        """A list of words."""
        for key, word in self.strings(name):
            yield self._meaning(key, word, words)

    def strings(self, name: str) -> Iterator[tuple[str, str]]:
        """A list of strings, each with its key in this table."""
        for index, value in enumerate(self.take(name, list) or ()):
            key = f"{name}[{index}]"
            if not isinstance(value, str):
                raise self.error(key, f"has to be {_KINDS[str]}, not {_kind(value)}")
            yield key, value

    def tables(self, name: str) -> Iterator[_Table]:
        """A list of tables."""
        for index, value in enumerate(self.take(name, list) or ()):
            yield _Table(self.file, f"{self.path(name)}[{index}]", value)

    def table(self, name: str) -> _Table:
        """A table; empty when it is not there."""
        return _Table(self.file, self.path(name), self.take(name, dict) or {})

    def finish(self) -> None:
        """Everything has been taken that has a meaning."""
        for name in self._values:
            close = get_close_matches(name, self._known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(self._known)}"
            raise self.error(name, f"is not known; {hint}")

    def _meaning(self, key: str, word: str, words: dict[str, T]) -> T:
        if word not in words:
            raise self.error(key, f'"{word}" is none of {", ".join(words)}')
        return words[word]


_KINDS: dict[object, str] = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    dict: "a table",
    float: "a number with a point",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a date or time")


class _Reader:
    """Turns the tables of one file into a `Config`."""

    def __init__(self, file: str, owner: Credentials, accounts: Accounts) -> None:
        assert owner.uid is not None
        assert owner.gid is not None
        self._file = file
        self._uid = owner.uid
        self._gid = owner.gid
        self._accounts = accounts

    def read(self, values: dict[str, object]) -> Config:
        top = _Table(self._file, "", values)
        access = top.word("access", _ACCESS, "world")
        limits = self._limits(top.table("limits"))
        buses = tuple(self._bus(table) for table in top.tables("bus"))
        self._check_unique("bus", [(bus.key, bus.name) for bus in buses])
        top.finish()
        return Config(self._file, access, limits, buses)

    @staticmethod
    def _limits(table: _Table) -> LimitsConfig:
        found: dict[str, int] = {}
        for limit in fields(LimitsConfig):
            value = table.take(limit.name, int)
            if value is not None:
                if value < 1:
                    raise table.error(limit.name, "has to be at least 1")
                found[limit.name] = value
        table.finish()
        limits = LimitsConfig(**found)
        if limits.max_pool_size % PAGE_SIZE:
            raise table.error("max_pool_size", f"has to be a multiple of {PAGE_SIZE} (bytes)")
        return limits

    def _bus(self, table: _Table) -> BusConfig:
        owner = table.table("owner")
        uid = self._id(owner, "user", self._accounts.uid_of, self._uid)
        gid = self._id(owner, "group", self._accounts.gid_of, self._gid)
        owner.finish()
        access = table.word("access", _ACCESS, "owner")
        if table.take("final_metadata", bool):
            access |= MakeFlag.FINAL_METADATA
        bus = BusConfig(
            self._node_name(table, uid),
            uid,
            gid,
            access,
            self._bloom(table.table("bloom")),
            _any_of(table.words("creator_metadata", _METADATA)),
            _any_of(table.words("required_metadata", _METADATA)),
            self._policy(table),
            tuple(self._endpoint(endpoint, uid) for endpoint in table.tables("endpoint")),
            table.key,
        )
        self._check_unique("endpoint", [(endpoint.key, endpoint.name) for endpoint in bus.endpoints])
        table.finish()
        return bus

    def _endpoint(self, table: _Table, uid: int) -> EndpointConfig:
        endpoint = EndpointConfig(
            self._node_name(table, uid),
            table.word("access", _ACCESS, "owner"),
            self._policy(table),
            table.key,
        )
        table.finish()
        return endpoint

    def _node_name(self, table: _Table, uid: int) -> str:
        written = table.need("name", str)
        name = written.replace("{uid}", str(uid))
        try:
            check_own_name(name, Credentials(uid=uid))
        except KdbusError as error:
            why = f'"{written}" is no name for a node of uid {uid}: it begins with "{{uid}}-" (or "{uid}-")'
            raise table.error("name", f"{why}, has at most 63 letters, digits, _, - and .") from error
        return name

    @staticmethod
    def _bloom(table: _Table) -> Bloom:
        size, hashes = table.take("size", int), table.take("hashes", int)
        table.finish()
        default = Bloom()
        bloom = Bloom(default.size if size is None else size, default.n_hash if hashes is None else hashes)
        if not MIN_BLOOM_SIZE <= bloom.size <= MAX_BLOOM_SIZE or bloom.size % 8:
            raise table.error("size", f"has to be a multiple of 8 from {MIN_BLOOM_SIZE} to {MAX_BLOOM_SIZE}")
        if not 1 <= bloom.n_hash <= bloom.size * 8:
            raise table.error("hashes", "has to be at least 1 and at most the bits of the filter")
        return bloom

    # Policy

    def _policy(self, table: _Table) -> tuple[PolicyEntry, ...]:
        entries = []
        database = PolicyDatabase()
        for written in table.tables("policy"):
            entry = PolicyEntry(written.need("name", str), tuple(self._accesses(written)))
            written.finish()
            try:
                database.replace(written, [entry])
            except KdbusError as error:
                raise written.error("name", error.why) from error
            entries.append(entry)
        return tuple(entries)

    def _accesses(self, table: _Table) -> Iterator[Access]:
        for word, level in _LEVELS.items():
            for key, whom in table.strings(word):
                yield self._access(table, key, whom, level)

    def _access(self, table: _Table, key: str, whom: str, level: AccessLevel) -> Access:
        if whom == _EVERYBODY:
            return Access(AccessType.WORLD, 0, level)
        kind, colon, name = whom.partition(":")
        if colon and kind == "user":
            return Access(AccessType.USER, self._resolve(table, key, name, self._accounts.uid_of), level)
        if colon and kind == "group":
            return Access(AccessType.GROUP, self._resolve(table, key, name, self._accounts.gid_of), level)
        raise table.error(
            key, f'"{whom}" is none of {_EVERYBODY}, user:NAME, user:UID, group:NAME, group:GID'
        )

    # Users

    def _id(self, table: _Table, name: str, look_up: Callable[[str], int], default: int) -> int:
        value = table.take(name, object)
        if value is None:
            return default
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return self._resolve(table, name, str(value), look_up)
        raise table.error(name, f"has to be a name or a number, not {_kind(value)}")

    @staticmethod
    def _resolve(table: _Table, key: str, name: str, look_up: Callable[[str], int]) -> int:
        if name.isascii() and name.isdecimal():
            id = int(name)
        else:
            try:
                id = look_up(name)
            except (KeyError, ValueError):  # the latter for what no name can contain
                raise table.error(key, f'there is no "{name}" on this machine') from None
        if not 0 <= id < UNSET_ID:
            raise table.error(key, f"{id} is no id")
        return id

    def _check_unique(self, what: str, named: Iterable[tuple[str, str]]) -> None:
        seen: dict[str, str] = {}
        for key, name in named:
            if name in seen:
                raise ConfigError(self._file, f"{key}.name", f'{seen[name]} is {what} "{name}" already')
            seen[name] = key


def _any_of(flags: Iterable[AttachFlag]) -> AttachFlag:
    mask = AttachFlag(0)
    for flag in flags:
        mask |= flag
    return mask
