"""busproxyd's command line: dbus-daemon's options, read as dbus-daemon reads them, and some of our own.

The reading is one pass over the words. `--config-file`, `--address`, `--print-address`, `--print-pid`, and of
our own `--loop`, `--native` and `--core` take their value after "=" or as the next word; the next word is
theirs only if it is not an option without a value itself, so `--print-address --session` means what it says.
A value option given twice is refused, as is a second configuration file in whatever form; contradicting
switches are settled by the last one. `--version` and `--introspect` end the reading: nothing after them is
looked at.

Written by hand because an argument parser from the library cannot do this and costs more to import than the
rest of a `--version`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

SYSTEM_CONFIG_DIRECTORY = "/usr/share/dbus-1"
PACKAGED_CONFIG_DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "policy", "data")

USAGE = (
    "busproxyd [--version] [--session] [--system] [--config-file=FILE] [--print-address[=DESCRIPTOR]]"
    " [--print-pid[=DESCRIPTOR]] [--introspect] [--address=ADDRESS] [--nopidfile] [--nosyslog] [--syslog]"
    " [--syslog-only] [--nofork] [--fork] [--systemd-activation] [--loop=asyncio|uvloop|auto]"
    " [--native=DIRECTORY] [--core=ENDPOINT]"
)

LOOPS = ("asyncio", "uvloop", "auto")
_LARGEST_DESCRIPTOR = 2**31 - 1


class Action(Enum):
    """What the command line asks for."""

    RUN = auto()
    VERSION = auto()
    INTROSPECT = auto()


class Syslog(Enum):
    """Where messages go; FROM_CONFIG leaves it to `<syslog/>`."""

    FROM_CONFIG = auto()
    NEVER = auto()
    ALSO = auto()
    ONLY = auto()


class UsageError(Exception):
    """A command line that cannot be followed: print it on standard error and end with `status`."""

    status = 1


@dataclass(slots=True)
class Options:
    """A command line that can be followed.

    `config_file` is never empty for RUN. `address` replaces every `<listen>` of the file. `print_address` and
    `print_pid` are file descriptors, None when not asked for. `fork` is None when the configuration decides.
    `native` is the absolute path of the directory at which native peers connect, None without them; `core`
    that of the endpoint of another broker's bus, None for a bus of our own. There is at most one of them.
    """

    action: Action = Action.RUN
    config_file: str = ""
    address: str | None = None
    print_address: int | None = None
    print_pid: int | None = None
    fork: bool | None = None
    write_pidfile: bool = True
    syslog: Syslog = Syslog.FROM_CONFIG
    systemd_activation: bool = False
    loop: str = "auto"
    native: str | None = None
    core: str | None = None


_SWITCHES: dict[str, tuple[str, object]] = {
    "--nosyslog": ("syslog", Syslog.NEVER),
    "--syslog": ("syslog", Syslog.ALSO),
    "--syslog-only": ("syslog", Syslog.ONLY),
    "--nofork": ("fork", False),
    "--fork": ("fork", True),
    "--systemd-activation": ("systemd_activation", True),
    "--nopidfile": ("write_pidfile", False),
}
_ENDING = {"--version": Action.VERSION, "--introspect": Action.INTROSPECT}
_STANDARD = {"--system": "system", "--session": "session"}
_HELP = frozenset({"--help", "-h", "-?"})

_VALUES = {
    "--config-file": "configuration file",
    "--address": "address",
    "--print-address": "printing address to",
    "--print-pid": "printing pid to",
    "--loop": "loop",
    "--native": "directory for native peers",
    "--core": "endpoint of a bus",
}
"""The options with a value, in the order in which a word is tried on them, and what they call that value."""


def standard_config_file(kind: str, *, exists: Callable[[str], bool] = os.path.exists) -> str:
    """The path of the "session" or "system" configuration: the machine's own, else the one shipped here."""
    name = f"{kind}.conf"
    installed = os.path.join(SYSTEM_CONFIG_DIRECTORY, name)
    return installed if exists(installed) else os.path.join(PACKAGED_CONFIG_DIRECTORY, name)


def parse_options(
    arguments: Sequence[str], *, find_config: Callable[[str], str] = standard_config_file
) -> Options:
    """The options in `arguments` (without the program's name); UsageError if they cannot be followed."""
    options = Options()
    values = dict.fromkeys(_VALUES, "")
    asked: set[str] = set()
    previous = ""
    for word in arguments:
        if word in _HELP:
            raise UsageError(USAGE)
        if word in _ENDING:
            options.action = _ENDING[word]
            return options
        if word in _SWITCHES:
            setattr(options, *_SWITCHES[word])
        elif word in _STANDARD:
            _set_value(values, "--config-file", find_config(_STANDARD[word]), given_as=word)
        else:
            option, value = _find_value(word, previous)
            asked.add(option)
            if value is not None:
                _set_value(values, option, value, given_as=option)
        previous = word
    if not values["--config-file"]:
        raise UsageError(f"No configuration file specified.\n{USAGE}")
    options.config_file = values["--config-file"]
    options.address = values["--address"] or None
    if "--print-address" in asked:
        options.print_address = _parse_descriptor(values["--print-address"])
    if "--print-pid" in asked:
        options.print_pid = _parse_descriptor(values["--print-pid"])
    if "--loop" in asked:
        options.loop = values["--loop"]
        if options.loop not in LOOPS:
            raise UsageError(f'Invalid loop: "{options.loop}"\n{USAGE}')
    if values["--native"]:
        options.native = os.path.abspath(values["--native"])  # in the background "." is another directory
    elif "--native" in asked:
        raise UsageError(f"No directory for native peers specified.\n{USAGE}")
    if values["--core"]:
        options.core = os.path.abspath(values["--core"])
    elif "--core" in asked:
        raise UsageError(f"No endpoint of a bus specified.\n{USAGE}")
    if options.core is not None and options.native is not None:
        raise UsageError(f"Native peers connect to the broker of --core, not to this program.\n{USAGE}")
    return options


def _find_value(word: str, previous: str) -> tuple[str, str | None]:
    """Which value option `word` belongs to, and the value if the word holds one."""
    for option in _VALUES:
        if word.startswith(f"{option}="):
            return option, word[len(option) + 1 :]
        if previous == option:
            return option, word
        if word == option:
            return option, None
    raise UsageError(USAGE)


def _set_value(values: dict[str, str], option: str, value: str, *, given_as: str) -> None:
    if values[option]:
        raise UsageError(f"{given_as} specified but {_VALUES[option]} {values[option]} already requested")
    values[option] = value


def _parse_descriptor(text: str) -> int:
    """The file descriptor `text` names; standard output without one."""
    if not text:
        return 1
    if not (text.isascii() and text.isdigit() and int(text) <= _LARGEST_DESCRIPTOR):
        raise UsageError(f'Invalid file descriptor: "{text}"')
    return int(text)
