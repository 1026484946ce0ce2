"""The one loader: configuration files in, a complete `BusConfig` or one `ConfigError` out.

Each file is parsed by expat into a `BusConfig` of its own, which the including file takes in only when it
is whole; a file that fails leaves nothing behind. What is accepted is what dbus-daemon 1.14 accepts at start,
with these differences: an internal DTD subset and an entity of the file's own are refused (so nothing can
expand), and a repeated inclusion is recognised by the file's real path, not by its spelling. A DOCTYPE may
name an external DTD; nothing is ever fetched.

`<include>` and `<includedir>` are resolved against the including file's directory. The files of a directory
are read in the order of their names; dbus-daemon leaves that order open. A broken file of a directory is
left out with a warning, and a missing directory is no error; a broken `<include>` refuses the whole.
Element text is taken as it stands: white space around an address or a name belongs to it.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from xml.parsers import expat

from busproxy.policy.config import (
    KNOWN_MECHANISMS,
    LIMIT_NAMES,
    RULE_ATTRIBUTES,
    WIDE_LIMITS,
    BusConfig,
    ConnectRule,
    Context,
    Limits,
    Located,
    PolicyBlock,
    RuleKind,
    RuleText,
    ServiceDir,
    ServiceDirKind,
    parse_c_integer,
    rule_problem,
)

LARGEST_FILE = 1024 * 1024
_XML_SPACE = " \t\r\n"


class ConfigError(Exception):
    """A configuration that cannot be used: which file, which line (0: none in particular) and why."""

    def __init__(self, file: str, line: int, reason: str, *, missing: bool = False) -> None:
        super().__init__(f"{file}:{line}: {reason}" if line else f"{file}: {reason}")
        self.file = file
        self.line = line
        self.reason = reason
        self.missing = missing
        """A file that was to be read does not exist: `ignore_missing` forgives this and nothing else."""


def read_config_file(path: str) -> bytes:
    """The contents of a regular file of at most 1 MiB; OSError for anything else."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > LARGEST_FILE:
            raise OSError(errno.EFBIG, "larger than 1 MiB")
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def resolve_user(name: str) -> int | None:
    """The uid of a user name or uid, or None where the machine has no such account."""
    number = parse_c_integer(name, whole=True)
    try:
        return (pwd.getpwnam(name) if number is None else pwd.getpwuid(number)).pw_uid
    except (KeyError, ValueError, OverflowError):
        return None


def resolve_group(name: str) -> int | None:
    """The gid of a group name or gid, or None where the machine has no such group."""
    number = parse_c_integer(name, whole=True)
    try:
        return (grp.getgrnam(name) if number is None else grp.getgrgid(number)).gr_gid
    except (KeyError, ValueError, OverflowError):
        return None


def selinux_enabled() -> bool:
    return os.path.exists("/sys/fs/selinux/enforce")


def selinux_policy_root() -> str:
    """The directory of the SELinux policy in use, as /etc/selinux/config names it."""
    policy_type = "targeted"
    try:
        with open("/etc/selinux/config", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, separator, value = line.partition("=")
                if separator and key.strip() == "SELINUXTYPE":
                    policy_type = value.strip()
    except OSError:
        pass
    return os.path.join("/etc/selinux", policy_type)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the loader asks the machine besides the files: directories, accounts, SELinux."""

    list_directory: Callable[[str], list[str]] = os.listdir
    resolve_user: Callable[[str], int | None] = resolve_user
    resolve_group: Callable[[str], int | None] = resolve_group
    selinux_enabled: Callable[[], bool] = selinux_enabled
    selinux_policy_root: Callable[[], str] = selinux_policy_root


def load_config(
    path: str, *, read: Callable[[str], bytes] = read_config_file, machine: Machine | None = None
) -> BusConfig:
    """The whole configuration that begins in `path`; ConfigError if any part of it cannot be used."""
    session = _Session(read=read, machine=machine or Machine())
    try:
        data = read(path)
    except OSError as error:
        raise ConfigError(path, 0, f"cannot be read: {error.strerror}") from error
    config = _FileParser(session, path, Limits()).parse(data)
    if not config.listens:
        raise ConfigError(path, 0, "no <listen> gives the bus an address")
    return config


class _Session:
    """What the parsers of one load share: the ways to the machine and the inclusions under way."""

    def __init__(self, *, read: Callable[[str], bytes], machine: Machine) -> None:
        self.read = read
        self.machine = machine
        self.including: list[str] = []


@dataclass(slots=True)
class _Element:
    """An open element; `text` is collected where `takes_text`, elsewhere only white space may stand."""

    name: str
    attributes: dict[str, str]
    line: int
    takes_text: bool = False
    text: str = ""


class _FileParser:
    """One file on its way to a `BusConfig`."""

    def __init__(self, session: _Session, path: str, limits: Limits) -> None:
        self._session = session
        self._machine = session.machine
        self._path = path
        self._directory = os.path.dirname(path) or "."
        self._config = BusConfig(limits=limits, files=[path])
        self._stack: list[_Element] = []
        self._block: PolicyBlock | None = None

    def parse(self, data: bytes) -> BusConfig:
        parser = self._expat = expat.ParserCreate("UTF-8")
        parser.buffer_text = True
        parser.StartElementHandler = self._on_start
        parser.EndElementHandler = self._on_end
        parser.CharacterDataHandler = self._on_text
        parser.StartDoctypeDeclHandler = self._on_doctype
        parser.SkippedEntityHandler = self._on_entity
        try:
            parser.Parse(data, True)  # noqa: FBT003 (expat takes it by position only)
        except expat.ExpatError as error:
            raise ConfigError(self._path, error.lineno, expat.ErrorString(error.code)) from error
        return self._config

    def _error(self, reason: str, line: int | None = None) -> ConfigError:
        return ConfigError(self._path, self._expat.CurrentLineNumber if line is None else line, reason)

    def _on_doctype(self, _name: str, _system: str | None, _public: str | None, subset: int) -> None:
        if subset:
            raise self._error("a DTD inside the file is not accepted")

    def _on_entity(self, name: str, _is_parameter: bool) -> None:
        raise self._error(f"the entity {name} is not accepted")

    def _on_text(self, text: str) -> None:
        if self._stack[-1].takes_text:
            self._stack[-1].text += text
        elif text.strip(_XML_SPACE):
            raise self._error(f"<{self._stack[-1].name}> takes no text")

    def _on_start(self, name: str, attributes: dict[str, str]) -> None:
        element = _Element(name, attributes, self._expat.CurrentLineNumber)
        parent = self._stack[-1].name if self._stack else None
        allowed = _ATTRIBUTES.get((parent, name))
        if allowed is None:
            place = f"inside <{parent}>" if parent else "as root element"
            raise self._error(f"<{name}> is not allowed {place}")
        for attribute in attributes:
            if attribute not in allowed:
                raise self._error(f"<{name}> has no attribute {attribute}")
        element.takes_text = parent == "busconfig" and name in _ON_TEXT
        on_start = _ON_START.get(name)
        if on_start is not None:
            on_start(self, element)
        self._stack.append(element)

    def _on_end(self, name: str) -> None:
        element = self._stack.pop()
        if element.takes_text:
            if not element.text:
                raise self._error(f"<{name}> needs a text", element.line)
            _ON_TEXT[name](self, element)
        elif name == "policy":
            self._block = None

    # Elements that say all they have to say with their start.

    def _start_flag(self, element: _Element) -> None:
        setattr(self._config, element.name, True)

    def _start_standard_session_dirs(self, element: _Element) -> None:
        self._add_service_dir(ServiceDirKind.STANDARD_SESSION, None, element)

    def _start_standard_system_dirs(self, element: _Element) -> None:
        self._add_service_dir(ServiceDirKind.STANDARD_SYSTEM, None, element)

    def _start_apparmor(self, element: _Element) -> None:
        mode = element.attributes.get("mode")
        if mode == "required":
            raise self._error("AppArmor mediation is required here and this bus does not offer it")
        if mode not in (None, "enabled", "disabled"):
            raise self._error(f'mode must be "enabled", "disabled" or "required", not "{mode}"')
        self._config.apparmor_mode = mode or "enabled"

    def _start_associate(self, element: _Element) -> None:
        if len(element.attributes) != 2:
            raise self._error("<associate> needs both own and context")
        own, context = element.attributes["own"], element.attributes["context"]
        self._config.selinux_contexts[own] = Located(context, self._path, element.line)

    def _start_policy(self, element: _Element) -> None:
        if len(element.attributes) != 1:
            raise self._error("<policy> needs exactly one of context, user, group and at_console")
        ((attribute, value),) = element.attributes.items()
        context = _CONTEXTS.get((attribute, value)) or _CONTEXTS.get((attribute, None))
        if context is None:
            raise self._error(f'{attribute} of <policy> cannot be "{value}"')
        subject = None
        if context in (Context.USER, Context.GROUP):
            subject = self._resolve(context is Context.USER, value)
        self._block = PolicyBlock(context, subject, self._path, element.line)
        if subject is not None or context not in (Context.USER, Context.GROUP):
            self._config.policies.append(self._block)
        else:
            self._warn(element, f'the policy is left out: there is no {attribute} "{value}"')

    def _start_rule(self, element: _Element) -> None:
        problem = rule_problem(element.attributes)
        if problem is not None:
            raise self._error(problem)
        block = self._block
        assert block is not None
        rule = RuleText(element.name == "allow", element.attributes, self._path, element.line)
        if rule.kind in (RuleKind.USER, RuleKind.GROUP):
            self._add_connect_rule(element, block, rule)
        else:
            block.rules.append(rule)

    def _add_connect_rule(self, element: _Element, block: PolicyBlock, rule: RuleText) -> None:
        is_user = rule.kind is RuleKind.USER
        name = rule.attributes["user" if is_user else "group"]
        number = None if name == "*" else self._resolve(is_user, name)
        if name != "*" and number is None:
            kind = "user" if is_user else "group"
            self._warn(element, f'the rule is left out: there is no {kind} "{name}"')
            return
        if block.context in (Context.USER, Context.GROUP):
            if block.subject is not None:
                raise self._error("who may connect cannot be said for one user or group")
            return
        connect_rule = ConnectRule(
            rule.allow, number if is_user else None, None if is_user else number, rule.place
        )
        block.rules.append(rule)
        if block.context is Context.DEFAULT:
            self._config.connect.default.append(connect_rule)
        elif block.context is Context.MANDATORY:
            self._config.connect.mandatory.append(connect_rule)

    # Elements whose text counts.

    def _text_value(self, element: _Element) -> None:
        setattr(self._config, element.name, element.text)

    def _text_listen(self, element: _Element) -> None:
        self._config.listens.append(Located(element.text, self._path, element.line))

    def _text_auth(self, element: _Element) -> None:
        if element.text not in KNOWN_MECHANISMS:
            known = ", ".join(KNOWN_MECHANISMS)
            raise self._error(f'"{element.text}" is no known mechanism ({known})', element.line)
        self._config.auth.append(Located(element.text, self._path, element.line))

    def _text_servicedir(self, element: _Element) -> None:
        self._add_service_dir(ServiceDirKind.EXPLICIT, self._full_path(element.text), element)

    def _text_servicehelper(self, element: _Element) -> None:
        self._config.servicehelper = self._full_path(element.text)

    def _text_limit(self, element: _Element) -> None:
        name = element.attributes.get("name")
        if name is None:
            raise self._error("<limit> needs a name", element.line)
        if name not in LIMIT_NAMES:
            raise self._error(f'there is no limit "{name}"', element.line)
        value = parse_c_integer(element.text)
        if value is None:
            raise self._error(f'{name} needs a number, not "{element.text}"', element.line)
        if value < 0:
            raise self._error(f"{name} cannot be negative", element.line)
        if value > 2**31 - 1 and name not in WIDE_LIMITS:
            raise self._error(f"{name} cannot be larger than {2**31 - 1}", element.line)
        setattr(self._config.limits, name, value)

    def _text_include(self, element: _Element) -> None:
        answers = {}
        for attribute in ("ignore_missing", "if_selinux_enabled", "selinux_root_relative"):
            answer = element.attributes.get(attribute, "no")
            if answer not in ("yes", "no"):
                raise self._error(f'{attribute} must be "yes" or "no", not "{answer}"', element.line)
            answers[attribute] = answer == "yes"
        if answers["if_selinux_enabled"] and not self._machine.selinux_enabled():
            return
        if answers["selinux_root_relative"]:
            path = os.path.join(self._machine.selinux_policy_root(), element.text)
        else:
            path = self._full_path(element.text)
        try:
            self._include(path, element.line)
        except ConfigError as error:
            if not (error.missing and answers["ignore_missing"]):
                raise
            if error.file != self._path:
                self._warn(element, f"{path} is left out: {error}")

    def _text_includedir(self, element: _Element) -> None:
        directory = self._full_path(element.text)
        try:
            names = self._machine.list_directory(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error(f"{directory} cannot be read: {error.strerror}", element.line) from error
        self._config.config_dirs.append(directory)
        for name in sorted(names):
            if name.endswith(".conf"):
                path = os.path.join(directory, name)
                try:
                    self._include(path, element.line)
                except ConfigError as error:
                    if not (error.missing and error.file == self._path):
                        self._warn(element, f"{path} is left out: {error}")

    def _include(self, path: str, line: int) -> None:
        identity = os.path.realpath(path)
        if identity in self._session.including:
            raise self._error(f"{path} includes itself", line)
        try:
            data = self._session.read(path)
        except OSError as error:
            reason = f"{path} cannot be read: {error.strerror}"
            missing = isinstance(error, FileNotFoundError)
            raise ConfigError(self._path, line, reason, missing=missing) from error
        self._session.including.append(identity)
        try:
            included = _FileParser(self._session, path, replace(self._config.limits)).parse(data)
        finally:
            self._session.including.pop()
        self._config.merge(included)

    def _full_path(self, text: str) -> str:
        return os.path.join(self._directory, text)

    def _add_service_dir(self, kind: ServiceDirKind, path: str | None, element: _Element) -> None:
        self._config.add_service_dir(ServiceDir(kind, path, self._path, element.line))

    def _resolve(self, is_user: bool, name: str) -> int | None:
        return self._machine.resolve_user(name) if is_user else self._machine.resolve_group(name)

    def _warn(self, element: _Element, sentence: str) -> None:
        self._config.warnings.append(f"{self._path}:{element.line}: {sentence}")


_PLAIN = (
    *("type", "user", "fork", "keep_umask", "syslog", "allow_anonymous", "pidfile", "listen", "auth"),
    *("servicedir", "servicehelper", "standard_session_servicedirs", "standard_system_servicedirs"),
    *("includedir", "selinux"),
)
_ATTRIBUTES: dict[tuple[str | None, str], frozenset[str]] = {
    (None, "busconfig"): frozenset(),
    **{("busconfig", name): frozenset() for name in _PLAIN},
    ("busconfig", "apparmor"): frozenset({"mode"}),
    ("busconfig", "include"): frozenset({"ignore_missing", "if_selinux_enabled", "selinux_root_relative"}),
    ("busconfig", "limit"): frozenset({"name"}),
    ("busconfig", "policy"): frozenset({"context", "user", "group", "at_console"}),
    ("policy", "allow"): RULE_ATTRIBUTES,
    ("policy", "deny"): RULE_ATTRIBUTES,
    ("selinux", "associate"): frozenset({"own", "context"}),
}
"""Which element may stand in which, and its attributes."""

_Handler = Callable[[_FileParser, _Element], None]

_ON_START: dict[str, _Handler] = {
    "fork": _FileParser._start_flag,
    "keep_umask": _FileParser._start_flag,
    "syslog": _FileParser._start_flag,
    "allow_anonymous": _FileParser._start_flag,
    "standard_session_servicedirs": _FileParser._start_standard_session_dirs,
    "standard_system_servicedirs": _FileParser._start_standard_system_dirs,
    "apparmor": _FileParser._start_apparmor,
    "associate": _FileParser._start_associate,
    "policy": _FileParser._start_policy,
    "allow": _FileParser._start_rule,
    "deny": _FileParser._start_rule,
}

_ON_TEXT: dict[str, _Handler] = {
    "type": _FileParser._text_value,
    "user": _FileParser._text_value,
    "pidfile": _FileParser._text_value,
    "listen": _FileParser._text_listen,
    "auth": _FileParser._text_auth,
    "servicedir": _FileParser._text_servicedir,
    "servicehelper": _FileParser._text_servicehelper,
    "limit": _FileParser._text_limit,
    "include": _FileParser._text_include,
    "includedir": _FileParser._text_includedir,
}

_CONTEXTS: dict[tuple[str, str | None], Context] = {
    ("context", "default"): Context.DEFAULT,
    ("context", "mandatory"): Context.MANDATORY,
    ("user", None): Context.USER,
    ("group", None): Context.GROUP,
    ("at_console", "true"): Context.AT_CONSOLE,
    ("at_console", "false"): Context.NOT_AT_CONSOLE,
}
