"""Service files: which names are activatable and how each service is started.

A `.service` file is read as dbus-daemon reads it: a desktop file in UTF-8 whose first "D-BUS Service" section
counts, and in it the first line of each key. Any fault in any line makes the whole file void, except for the
command line: a service whose `Exec` cannot be split is activatable, and the fault shows when it is started.

Directories are searched in order and the first file for a name wins. Within one directory files are read in
alphabetical order, so that the same directory gives the same services every time. File and bus name need not
agree, except in the transient directory of a session ($XDG_RUNTIME_DIR/dbus-1/services), the only one where
dbus-daemon insists ("strict").
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = [
    "CommandLineError",
    "ServiceFile",
    "ServiceFileError",
    "load_service_directories",
    "parse_service_file",
    "prepare_transient_service_directory",
    "split_command_line",
    "standard_session_service_directories",
    "standard_system_service_directories",
    "transient_session_service_directory",
]

_SECTION: Final = "D-BUS Service"
_SUFFIX: Final = ".service"
_MAX_FILE_SIZE: Final = 128 * 1024
_DATA_DIRECTORY: Final = "/usr/share"
_SESSION_SUFFIX: Final = "/dbus-1/services"
_SYSTEM_SUFFIX: Final = "/dbus-1/system-services"
_OTHERS_MAY_WRITE: Final = 0o022

_LINE: Final = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")
_BLANK_LINE: Final = re.compile(r"[ \t\r\f]*(?:\n|\Z)")
_KEY: Final = re.compile(r"[A-Za-z0-9-]+")
_SECTION_NAME: Final = re.compile(r"[ -Z\\^-~]+")
_UNESCAPED: Final = {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


class ServiceFileError(ValueError):
    """A service file that does not count. `line` is None where the file as a whole is at fault."""

    path: str
    line: int | None

    def __init__(self, path: str, line: int | None, reason: str) -> None:
        place = path if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {reason}")
        self.path = path
        self.line = line


class CommandLineError(ValueError):
    """A command line whose quotes do not match."""


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """What a service file says. `name` is as written: it may be no valid bus name, and then is of no use."""

    path: str
    name: str
    exec: str
    user: str | None = None
    systemd_service: str | None = None
    assumed_apparmor_label: str | None = None

    def argv(self) -> list[str]:
        """Split `exec` into arguments. Raise `CommandLineError` if its quotes do not match."""
        return split_command_line(self.exec)


def parse_service_file(text: str, path: str) -> ServiceFile:
    """Parse the text of a service file; `path` is for the result and for messages."""
    if "\0" in text:
        raise ServiceFileError(path, None, "invalid UTF-8")
    values = _parse_sections(text, path).get(_SECTION, {})
    for key in ("Name", "Exec"):
        if key not in values:
            raise ServiceFileError(path, None, f'No "{key}" key in .service file')
    return ServiceFile(
        path=path,
        name=values["Name"],
        exec=values["Exec"],
        user=values.get("User"),
        systemd_service=values.get("SystemdService"),
        assumed_apparmor_label=values.get("AssumedAppArmorLabel"),
    )


def load_service_directories(
    directories: Iterable[str],
    *,
    strict: bool | Collection[str] = False,
    on_problem: Callable[[ServiceFileError], None] | None = None,
) -> dict[str, ServiceFile]:
    """Read all service files of these directories, by bus name; directories that cannot be read are skipped.

    `strict` (for all directories, or for those in a collection) leaves out files that are not called after
    their bus name. `on_problem` is told of each file that was left out for a fault of its own.
    """
    services: dict[str, ServiceFile] = {}
    for directory in directories:
        is_strict = strict if isinstance(strict, bool) else directory in strict
        try:
            file_names = sorted(os.listdir(directory))
        except OSError:
            continue
        for file_name in file_names:
            if not file_name.endswith(_SUFFIX):
                continue
            try:
                service = _load_service_file(os.path.join(directory, file_name))
                if is_strict and file_name != service.name + _SUFFIX:
                    raise ServiceFileError(
                        service.path,
                        None,
                        f'should have been named "{service.name}{_SUFFIX}": not loading it',
                    )
            except ServiceFileError as error:
                if on_problem is not None:
                    on_problem(error)
            else:
                services.setdefault(service.name, service)
    return services


def standard_session_service_directories(environ: Mapping[str, str], *, home: str | None = None) -> list[str]:
    """List what `<standard_session_servicedirs/>` stands for, the transient directory first.

    `home` is the user's home directory, by default the user database's: like dbus-daemon this does not look
    at $HOME.
    """
    transient = transient_session_service_directory(environ)
    data_home = environ.get("XDG_DATA_HOME")
    if data_home is None:
        data_home = (_home_directory(environ) if home is None else home) + "/.local/share"
    data_directories = environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share")
    searched = ":".join((data_home, data_directories, _DATA_DIRECTORY))
    standard = _append_to_each(searched, _SESSION_SUFFIX)
    return list(dict.fromkeys(standard if transient is None else [transient, *standard]))


def standard_system_service_directories() -> list[str]:
    """List what `<standard_system_servicedirs/>` stands for."""
    searched = f"/usr/local/share:/usr/share:{_DATA_DIRECTORY}:/lib"
    return list(dict.fromkeys(_append_to_each(searched, _SYSTEM_SUFFIX)))


def transient_session_service_directory(environ: Mapping[str, str]) -> str | None:
    """Give the directory for services of this session only, the strict one; None without XDG_RUNTIME_DIR."""
    runtime_directory = environ.get("XDG_RUNTIME_DIR")
    return None if runtime_directory is None else runtime_directory + _SESSION_SUFFIX


def prepare_transient_service_directory(environ: Mapping[str, str]) -> None:
    """Make the transient directory, if there is to be one. Raise OSError when it must not be used.

    It must be ours and writable only by us, and so must what it lies in: XDG_RUNTIME_DIR may be left over
    from another user (su).
    """
    runtime_directory = environ.get("XDG_RUNTIME_DIR")
    if runtime_directory is None:
        return
    _require_own_directory(runtime_directory)
    for directory in (f"{runtime_directory}/dbus-1", f"{runtime_directory}{_SESSION_SUFFIX}"):
        if not os.path.isdir(directory):
            os.mkdir(directory, 0o700)
        _require_own_directory(directory)


def split_command_line(text: str) -> list[str]:
    r"""Split a command line into arguments as dbus-daemon does, which is nearly as a shell does.

    Blanks separate, '…' quotes everything, "…" leaves the meaning of a backslash before " \ ` $ and newline,
    a backslash outside quotes takes the next character as it is. Nothing is expanded. Unlike in a shell, "#"
    begins a comment even within a word, and a blank or newline at the end makes an empty last argument.
    """
    return [_unquote(token) for token in _split_tokens(text)]


def _load_service_file(path: str) -> ServiceFile:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ServiceFileError(path, None, str(error.strerror)) from error
    if len(data) > _MAX_FILE_SIZE:
        raise ServiceFileError(path, None, f"larger than {_MAX_FILE_SIZE} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ServiceFileError(path, None, "invalid UTF-8") from error
    return parse_service_file(text, path)


def _parse_sections(text: str, path: str) -> dict[str, dict[str, str]]:
    """Give the first section of each name, and in it the first value of each key."""
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    position = 0
    line_number = 0
    while position < len(text):
        line_number += 1
        match = _LINE.match(text, position)
        assert match is not None, "the pattern matches the empty line"
        line = match[1]
        if line.startswith("["):
            name = _parse_section_name(line, path, line_number)
            current = {}
            # A second section of the same name is checked like any other, and then forgotten.
            sections.setdefault(name, current)
        # Blankness is judged up to the newline, across carriage returns that end lines elsewhere.
        elif _BLANK_LINE.match(text, position) or line.startswith("#"):
            pass
        elif current is None:
            raise ServiceFileError(path, line_number, "key=value before [Section]")
        else:
            parsed = _parse_key_value(line, path, line_number)
            if parsed is not None:
                current.setdefault(*parsed)
        position = match.end()
    return sections


def _parse_section_name(line: str, path: str, line_number: int) -> str:
    if len(line) <= 2 or not line.endswith("]"):
        raise ServiceFileError(path, line_number, "Invalid syntax for section header")
    name = line[1:-1]
    if _SECTION_NAME.fullmatch(name) is None:
        raise ServiceFileError(path, line_number, "Invalid characters in section name")
    return name


def _parse_key_value(line: str, path: str, line_number: int) -> tuple[str, str] | None:
    """Give key and value; None for a translation ("Key[xx]=…"), which is passed over."""
    match = _KEY.match(line)
    if match is None:
        raise ServiceFileError(path, line_number, "Empty key name")
    rest = line[match.end() :]
    if rest.startswith("["):
        return None
    rest = rest.lstrip(" ")
    if not rest:
        raise ServiceFileError(path, line_number, "No '=' in key/value pair")
    if not rest.startswith("="):
        raise ServiceFileError(path, line_number, "Invalid characters in key name")
    return match[0], _unescape(rest[1:].lstrip(" "), path, line_number)


def _unescape(text: str, path: str, line_number: int) -> str:
    pieces = text.split("\\")
    value = [pieces[0]]
    index = 1
    while index < len(pieces):
        piece = pieces[index]
        if piece:
            char = _UNESCAPED.get(piece[0])
            if char is None:
                raise ServiceFileError(path, line_number, "Text to be unescaped had invalid escape sequence")
            value.append(char + piece[1:])
            index += 1
        elif index + 1 < len(pieces):
            value.append("\\" + pieces[index + 1])
            index += 2
        else:
            raise ServiceFileError(path, line_number, "Text to be unescaped ended in \\")
    return "".join(value)


def _home_directory(environ: Mapping[str, str]) -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        # A container may run us as a user that its database does not know.
        return environ.get("HOME", "/")


def _append_to_each(paths: str, suffix: str) -> list[str]:
    return [path.strip(" \t\r\n") + suffix for path in paths.split(":") if path.strip(" \t\r\n")]


def _require_own_directory(path: str) -> None:
    status = os.stat(path)
    if not os.path.isdir(path):
        raise NotADirectoryError(f'"{path}" is not a directory')
    if status.st_uid != os.geteuid():
        raise PermissionError(f'"{path}" is owned by uid {status.st_uid}, not our uid {os.geteuid()}')
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise PermissionError(f'"{path}" can be written by others (mode 0{status.st_mode:o})')


def _split_tokens(text: str) -> list[str]:
    """Cut at unquoted blanks and newlines, and drop comments; quotes and backslashes stay in the tokens."""
    tokens: list[str] = []
    token: list[str] = []
    quote = ""
    position = 0
    while position < len(text):
        char = text[position]
        if quote == "\\":
            if char != "\n":
                token.append("\\" + char)
            quote = ""
        elif quote == "#":
            newline = text.find("\n", position)
            quote = ""
            if newline < 0:
                break
            position = newline
        elif quote == '"' and char == "\\" and position + 1 < len(text):
            position += 1
            token.append("\\" + text[position])
        elif quote:
            token.append(char)
            if char == quote:
                quote = ""
        elif char == "\n" or (char in " \t" and token):
            tokens.append("".join(token))
            token = []
        elif char not in " \t":
            if char not in "#\\":
                token.append(char)
            if char in "'\"#\\":
                quote = char
        position += 1
    tokens.append("".join(token))
    if quote:
        raise CommandLineError("Unclosed quotes in command line")
    return tokens


def _unquote(token: str) -> str:
    """Take the quotes and backslashes out of a token whose quotes match."""
    value: list[str] = []
    quote = ""
    position = 0
    while position < len(token):
        char = token[position]
        position += 1
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                value.append(char)
        elif char == "\\" and position < len(token):
            escaped = token[position]
            if not quote:
                position += 1
                if escaped != "\n":
                    value.append(escaped)
            elif escaped in '"\\`$\n':
                position += 1
                value.append(escaped)
            else:
                value.append(char)
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        else:
            value.append(char)
    return "".join(value)
