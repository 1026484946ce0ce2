"""The model of a bus configuration: what the XML says, with the place where it says it.

A `BusConfig` is plain data. The loader fills one per file and `merge`s an included file into the including
one at the point of inclusion, so lists are in the order in which the text was met, and that order is the
order of evaluation. Only complete files are merged.

Two verdicts live here because they need nothing but the model: `ConnectPolicy.may_connect` (the user and
group rules) and `BusConfig.openness` (do the send, receive and own rules restrict anybody at all). User and
group names are numbers by the time they get here; the loader asks its resolver once. A rule that names an
unknown account is dropped with a warning, never widened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar, assert_never

T = TypeVar("T")

KNOWN_MECHANISMS = ("EXTERNAL", "DBUS_COOKIE_SHA1", "ANONYMOUS")

MOST_MESSAGE_FDS = 128 * 1024 * 1024 // 4
"""Upper end of `min_fds` and `max_fds`: no message of the largest size can name more fds."""

_C_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")


def parse_c_integer(text: str, *, whole: bool = False) -> int | None:
    """The number `text` begins with, as C's strtol with base 0 reads it; None without one or beyond 64 bits.

    Unless it is to be the `whole` text, what follows the number is ignored as dbus-daemon does: "5000 bytes"
    is 5000.
    """
    match = _C_INTEGER.match(text)
    if match is None or (whole and match.end() != len(text)):
        return None
    sign, digits = match.groups()
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    value = int(digits, base)
    if sign == "-":
        value = -value
    return value if -(2**63) <= value < 2**63 else None


@dataclass(frozen=True, slots=True)
class Located(Generic[T]):
    """A value and where the configuration gave it."""

    value: T
    file: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(slots=True)
class Limits:
    """dbus-daemon's limits under their configuration names, with its built-in values (those of a system bus).

    `*_bytes` and `max_message_size` are bytes, `*_timeout` milliseconds, the rest counts. A timeout of None
    never ends; the file cannot say so, only leave `reply_timeout` out. A message is never larger than the
    specification's 128 MiB, whatever `max_message_size` says. The container limits are read for
    compatibility; no bus of this project has containers.
    """

    max_incoming_bytes: int = 127 * 1024 * 1024
    max_incoming_unix_fds: int = 64
    max_outgoing_bytes: int = 127 * 1024 * 1024
    max_outgoing_unix_fds: int = 64
    max_message_size: int = 32 * 1024 * 1024
    max_message_unix_fds: int = 16
    service_start_timeout: int = 25_000
    auth_timeout: int = 30_000
    pending_fd_timeout: int = 150_000
    reply_timeout: int | None = None
    max_completed_connections: int = 2048
    max_incomplete_connections: int = 64
    max_connections_per_user: int = 256
    max_pending_service_starts: int = 512
    max_names_per_connection: int = 512
    max_match_rules_per_connection: int = 512
    max_replies_per_connection: int = 128
    max_containers: int = 512
    max_containers_per_user: int = 16
    max_container_metadata_bytes: int = 4096
    max_connections_per_container: int = 8


LIMIT_NAMES = frozenset(Limits.__slots__)

WIDE_LIMITS = frozenset(
    {
        "max_incoming_bytes",
        "max_incoming_unix_fds",
        "max_outgoing_bytes",
        "max_outgoing_unix_fds",
        "max_message_size",
        "max_message_unix_fds",
    }
)
"""Limits that take a 64-bit number; every other one must fit 31 bits."""


class RuleKind(Enum):
    """What a rule is asked about."""

    SEND = auto()
    RECEIVE = auto()
    OWN = auto()
    USER = auto()
    GROUP = auto()


_RESTRICTING_KINDS = {RuleKind.SEND, RuleKind.RECEIVE, RuleKind.OWN}

MESSAGE_TYPES = frozenset({"method_call", "method_return", "error", "signal"})

SEND_ATTRIBUTES = frozenset(
    {
        "send_broadcast",
        "send_destination",
        "send_destination_prefix",
        "send_error",
        "send_interface",
        "send_member",
        "send_path",
        "send_requested_reply",
        "send_type",
    }
)
RECEIVE_ATTRIBUTES = frozenset(
    {
        "receive_error",
        "receive_interface",
        "receive_member",
        "receive_path",
        "receive_requested_reply",
        "receive_sender",
        "receive_type",
    }
)
MODIFIERS = frozenset({"eavesdrop", "max_fds", "min_fds"})
ALONE = ("own", "own_prefix", "user", "group")
RULE_ATTRIBUTES = SEND_ATTRIBUTES | RECEIVE_ATTRIBUTES | MODIFIERS | frozenset(ALONE) | {"log"}

_BOOLEANS = ("eavesdrop", "send_broadcast", "send_requested_reply", "receive_requested_reply")
_NOT_A_PATTERN = frozenset({"send_destination_prefix", "send_broadcast"}) | frozenset(_BOOLEANS)
"""Message attributes for which "*" is no wildcard; with one of them a rule may leave messages out."""


def rule_problem(attributes: Mapping[str, str]) -> str | None:
    """Why dbus-daemon refuses a rule with these attributes, each a known one; None if it takes it."""
    names = attributes.keys()
    sends, receives, modifies = names & SEND_ATTRIBUTES, names & RECEIVE_ATTRIBUTES, names & MODIFIERS
    alone = [name for name in ALONE if name in names]
    if not (sends or receives or alone or "eavesdrop" in names):
        return "the rule says nothing it could match"
    if len(alone) > 1 or (alone and (sends or receives or modifies)):
        return f"{alone[0]} cannot be combined with other attributes"
    if sends and receives:
        return "send and receive attributes cannot be combined"
    if {"send_destination", "send_destination_prefix"} <= names:
        return "send_destination cannot be combined with send_destination_prefix"
    for side in ("send", "receive"):
        if f"{side}_member" in names and not names & {f"{side}_interface", f"{side}_path"}:
            return f"{side}_member needs {side}_interface or {side}_path beside it"
        if f"{side}_error" in names and names & {f"{side}_member", f"{side}_interface"}:
            return f"{side}_error cannot be combined with {side}_member or {side}_interface"
        kind = attributes.get(f"{side}_type", "*")
        if kind != "*" and kind not in MESSAGE_TYPES:
            return f'"{kind}" is no message type'
    for name in _BOOLEANS:
        if attributes.get(name, "true") not in ("true", "false"):
            return f'{name} must be "true" or "false", not "{attributes[name]}"'
    if attributes.get("send_broadcast") == "true" and attributes.get("send_destination", "*") != "*":
        return "a broadcast has no destination: the rule can never match"
    for name in ("max_fds", "min_fds"):
        if name in names:
            count = parse_c_integer(attributes[name])
            if count is None or not 0 <= count <= MOST_MESSAGE_FDS:
                return f'{name} must be a number from 0 to {MOST_MESSAGE_FDS}, not "{attributes[name]}"'
    return None


@dataclass(frozen=True, slots=True)
class RuleText:
    """One `<allow>` or `<deny>` as written; its attributes have passed `rule_problem`."""

    allow: bool
    attributes: Mapping[str, str]
    file: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def kind(self) -> RuleKind:
        names = self.attributes.keys()
        if "user" in names:
            return RuleKind.USER
        if "group" in names:
            return RuleKind.GROUP
        if names & {"own", "own_prefix"}:
            return RuleKind.OWN
        return RuleKind.SEND if names & SEND_ATTRIBUTES else RuleKind.RECEIVE

    @property
    def eavesdrop(self) -> bool:
        return self.attributes.get("eavesdrop") == "true"

    def matches_everything(self) -> bool:
        """Whether no message or name escapes this rule (eavesdropping and unrequested replies aside)."""
        given = self.attributes
        if self.kind is RuleKind.OWN:
            return given.get("own") == "*"
        if given.keys() & {"send_destination_prefix", "send_broadcast"}:
            return False
        if (parse_c_integer(given.get("min_fds", "0")) or 0) > 0:
            return False
        if "max_fds" in given and parse_c_integer(given["max_fds"]) != MOST_MESSAGE_FDS:
            return False
        patterns = (given.keys() & (SEND_ATTRIBUTES | RECEIVE_ATTRIBUTES)) - _NOT_A_PATTERN
        return all(given[name] == "*" for name in patterns)


class Context(Enum):
    """Whom a `<policy>` applies to. The members stand in the order of application: later ones override."""

    DEFAULT = auto()
    GROUP = auto()
    USER = auto()
    AT_CONSOLE = auto()
    NOT_AT_CONSOLE = auto()
    MANDATORY = auto()


@dataclass(slots=True)
class PolicyBlock:
    """One `<policy>` with its rules. `subject` is the uid or gid for USER and GROUP, else None."""

    context: Context
    subject: int | None
    file: str
    line: int
    rules: list[RuleText] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ConnectRule:
    """Who may connect: one uid, one gid, or with neither everybody."""

    allow: bool
    uid: int | None
    gid: int | None
    place: str

    def matches(self, uid: int, groups: Sequence[int]) -> bool:
        if self.uid is not None:
            return self.uid == uid
        return self.gid is None or self.gid in groups


@dataclass(slots=True)
class ConnectPolicy:
    """The user and group rules of the default and mandatory contexts, in order; the last match decides.

    Such rules in an at_console context are legal and have no effect, as in dbus-daemon.
    """

    default: list[ConnectRule] = field(default_factory=list)
    mandatory: list[ConnectRule] = field(default_factory=list)

    def may_connect(self, uid: int, groups: Sequence[int], owner_uid: int) -> bool:
        """Whether a client with these ids may use the bus that runs as `owner_uid`.

        Without a matching rule only the owner may. `groups` are all of the client's, the primary one too.
        """
        allowed = uid == owner_uid
        for rule in (*self.default, *self.mandatory):
            if rule.matches(uid, groups):
                allowed = rule.allow
        return allowed


class ServiceDirKind(Enum):
    """A directory by name, or one of the two standard lists at this place of the search order."""

    EXPLICIT = auto()
    STANDARD_SESSION = auto()
    STANDARD_SYSTEM = auto()


@dataclass(frozen=True, slots=True)
class ServiceDir:
    """One place to look for .service files; `path` is set for EXPLICIT only. Earlier ones take precedence."""

    kind: ServiceDirKind
    path: str | None
    file: str
    line: int


class Openness(Enum):
    """How much the send, receive and own rules leave to everybody."""

    EVERYTHING = auto()
    ALL_BUT_EAVESDROPPING = auto()
    """All but messages for others and replies nobody asked for."""
    RESTRICTED = auto()


@dataclass(slots=True)
class BusConfig:
    """A complete configuration. An empty `auth` list means that the file names no mechanism.

    `user` and `pidfile` are as written. `service_dirs` holds each directory once, at its first mention.
    `config_dirs` are the `<includedir>`s that exist and `files` everything that was read: what a reload could
    watch. `warnings` are one-line sentences about what was left out.
    """

    type: str | None = None
    user: str | None = None
    fork: bool = False
    keep_umask: bool = False
    syslog: bool = False
    allow_anonymous: bool = False
    pidfile: str | None = None
    servicehelper: str | None = None
    apparmor_mode: str | None = None
    listens: list[Located[str]] = field(default_factory=list)
    auth: list[Located[str]] = field(default_factory=list)
    service_dirs: list[ServiceDir] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    policies: list[PolicyBlock] = field(default_factory=list)
    connect: ConnectPolicy = field(default_factory=ConnectPolicy)
    selinux_contexts: dict[str, Located[str]] = field(default_factory=dict)
    config_dirs: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add_service_dir(self, entry: ServiceDir) -> None:
        if all((entry.kind, entry.path) != (known.kind, known.path) for known in self.service_dirs):
            self.service_dirs.append(entry)

    def merge(self, included: BusConfig) -> None:
        """Take in a file included here: single values replace, lists go on, limits are the included file's.

        `syslog` stays, as in dbus-daemon: only the main file decides it.
        """
        for name in ("type", "user", "pidfile", "servicehelper", "apparmor_mode"):
            value = getattr(included, name)
            if value is not None:
                setattr(self, name, value)
        self.fork |= included.fork
        self.keep_umask |= included.keep_umask
        self.allow_anonymous |= included.allow_anonymous
        self.listens += included.listens
        self.auth += included.auth
        for entry in included.service_dirs:
            self.add_service_dir(entry)
        self.limits = included.limits
        self.policies += included.policies
        self.connect.default += included.connect.default
        self.connect.mandatory += included.connect.mandatory
        self.selinux_contexts.update(included.selinux_contexts)
        self.config_dirs += included.config_dirs
        self.files += included.files
        self.warnings += included.warnings

    def rules(self) -> Iterator[tuple[PolicyBlock, RuleText]]:
        """The send, receive and own rules with their blocks, in order of application."""
        for context in Context:
            for block in self.policies:
                if block.context is context:
                    for rule in block.rules:
                        if rule.kind in _RESTRICTING_KINDS:
                            yield block, rule

    def openness(self) -> Openness:
        """Whether the rules let everybody send, receive and own everything, as a stock session bus does.

        What no rule allows is denied. Only an unconditional rule for everybody opens, any denial closes.
        """
        everybody = (Context.DEFAULT, Context.MANDATORY)
        plain: set[RuleKind] = set()
        eavesdropping: set[RuleKind] = {RuleKind.OWN}
        for block, rule in self.rules():
            if rule.allow:
                if block.context in everybody and rule.matches_everything():
                    plain.add(rule.kind)
                    if rule.eavesdrop:
                        eavesdropping.add(rule.kind)
            else:
                if not rule.eavesdrop:
                    plain.discard(rule.kind)
                if rule.kind is not RuleKind.OWN:
                    eavesdropping.discard(rule.kind)
        if plain != _RESTRICTING_KINDS:
            return Openness.RESTRICTED
        return Openness.EVERYTHING if eavesdropping == plain else Openness.ALL_BUT_EAVESDROPPING

    def is_open(self) -> bool:
        """Whether every ordinary message and every name is allowed to everybody."""
        return self.openness() is not Openness.RESTRICTED

    def unenforced(self) -> list[str]:
        """What this configuration demands and the bus does not do yet, in one sentence each."""
        sentences = []
        rules = [rule for _, rule in self.rules()]
        match self.openness():
            case Openness.RESTRICTED if not rules:
                sentences.append("no policy rule allows any message or name, which is not enforced yet")
            case Openness.RESTRICTED:
                first = next((rule for rule in rules if not rule.allow), rules[0])
                count = "1 rule" if len(rules) == 1 else f"{len(rules)} rules"
                sentences.append(
                    f"the policy for messages and names is not enforced yet ({count}; see {first.place})"
                )
            case Openness.ALL_BUT_EAVESDROPPING:
                sentences.append("the ban on eavesdropping and unrequested replies is not enforced yet")
            case Openness.EVERYTHING:
                pass
            case unreachable:
                assert_never(unreachable)
        if self.selinux_contexts:
            first_context = next(iter(self.selinux_contexts.values()))
            sentences.append(
                f"SELinux contexts of names are not enforced ({len(self.selinux_contexts)} associations; "
                f"see {first_context.place})"
            )
        return sentences
