"""Service files: what counts, what is left out and why, and how a command line is split.

The expected readings are those of dbus-daemon 1.14, observed with ListActivatableNames and by starting a
service that reports its arguments.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busproxy.activation.service_files import (
    CommandLineError,
    ServiceFile,
    ServiceFileError,
    load_service_directories,
    parse_service_file,
    prepare_transient_service_directory,
    split_command_line,
    standard_session_service_directories,
    standard_system_service_directories,
    transient_session_service_directory,
)

PLAIN = "[D-BUS Service]\nName=com.example.A\nExec=/bin/a\n"
PATH = "/dir/a.service"


def write_service(directory: Path, file_name: str, name: str, command: str = "/bin/true") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / file_name).write_text(f"[D-BUS Service]\nName={name}\nExec={command}\n")


def test_all_keys_arrive_in_their_fields() -> None:
    text = PLAIN + "User=ada\nSystemdService=a.service\nAssumedAppArmorLabel=/usr/bin/a\n"
    assert parse_service_file(text, PATH) == ServiceFile(
        path=PATH,
        name="com.example.A",
        exec="/bin/a",
        user="ada",
        systemd_service="a.service",
        assumed_apparmor_label="/usr/bin/a",
    )


def test_only_name_and_exec_are_needed() -> None:
    service = parse_service_file(PLAIN, PATH)
    assert (service.user, service.systemd_service, service.assumed_apparmor_label) == (None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "# a comment\n\n \t\n\f\n" + PLAIN,
        "[Other]\nName=com.example.B\n" + PLAIN,
        PLAIN + "[D-BUS Service]\nName=com.example.B\nExec=/bin/b\n",
        PLAIN + "Name=com.example.B\n",
        PLAIN.replace("Name=", "Name  =   "),
        PLAIN.replace("Name=", "Name[de]=com.example.B\nName="),
        PLAIN + "X-Unknown-1=anything at all\n",
        PLAIN + "Description=ü\u2028\x85\n",
        PLAIN + "[ any printable ~ ASCII ]\n",
    ],
)
def test_these_all_say_the_same(text: str) -> None:
    service = parse_service_file(text, PATH)
    assert (service.name, service.exec) == ("com.example.A", "/bin/a")


def test_a_blank_at_the_end_of_a_value_belongs_to_it() -> None:
    assert parse_service_file(PLAIN.replace("/bin/a", "/bin/a "), PATH).exec == "/bin/a "


def test_escapes_are_resolved() -> None:
    assert parse_service_file(PLAIN.replace("/bin/a", r"\s\t\n\r\\\\s"), PATH).exec == " \t\n\r\\\\s"


def test_an_empty_command_is_a_value() -> None:
    assert parse_service_file(PLAIN.replace("/bin/a", ""), PATH).exec == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f'{PATH}: No "Name" key in .service file'),
        ("[D-BUS Service]\nName=a.b\n", f'{PATH}: No "Exec" key in .service file'),
        ("[D-BUS Service]\nExec=/b\n", f'{PATH}: No "Name" key in .service file'),
        ("[d-bus service]\nName=a.b\nExec=/b\n", f'{PATH}: No "Name" key in .service file'),
        ("[D-BUS Service]\nName=a.b\n[D-BUS Service]\nExec=/b\n", f'{PATH}: No "Exec" key in .service file'),
        ("Name=a.b\n" + PLAIN, f"{PATH}:1: key=value before [Section]"),
        ("\ufeff" + PLAIN, f"{PATH}:1: key=value before [Section]"),
        (PLAIN + "\0", f"{PATH}: invalid UTF-8"),
        (PLAIN + "[]\n", f"{PATH}:4: Invalid syntax for section header"),
        (PLAIN + "[A] \n", f"{PATH}:4: Invalid syntax for section header"),
        (PLAIN + "[A\n", f"{PATH}:4: Invalid syntax for section header"),
        (PLAIN + "[A[B]\n", f"{PATH}:4: Invalid characters in section name"),
        (PLAIN + "[Ä]\n", f"{PATH}:4: Invalid characters in section name"),
        (PLAIN + " Key=value\n", f"{PATH}:4: Empty key name"),
        (PLAIN + "=value\n", f"{PATH}:4: Empty key name"),
        (PLAIN + "\v\n", f"{PATH}:4: Empty key name"),
        (PLAIN + "\rKey=value\n", f"{PATH}:4: Empty key name"),
        (PLAIN + "Key\t=value\n", f"{PATH}:4: Invalid characters in key name"),
        (PLAIN + "Some_Key=value\n", f"{PATH}:4: Invalid characters in key name"),
        (PLAIN + "Key [de]=value\n", f"{PATH}:4: Invalid characters in key name"),
        (PLAIN + "Key\n", f"{PATH}:4: No '=' in key/value pair"),
        (PLAIN + "Key  \n", f"{PATH}:4: No '=' in key/value pair"),
        (PLAIN + "\n\nKey=\\q\n", f"{PATH}:6: Text to be unescaped had invalid escape sequence"),
        (PLAIN + "Key=a\\\n", f"{PATH}:4: Text to be unescaped ended in \\"),
        (PLAIN + "Key=a\\\\\\\n", f"{PATH}:4: Text to be unescaped ended in \\"),
    ],
)
def test_one_fault_makes_the_file_void(text: str, message: str) -> None:
    with pytest.raises(ServiceFileError) as caught:
        parse_service_file(text, PATH)
    assert str(caught.value) == message


COMMAND_LINES = [
    ("/bin/a", ["/bin/a"]),
    ("a  b\tc", ["a", "b", "c"]),
    (" a", ["a"]),
    ("a ", ["a", ""]),
    ("  ", [""]),
    ("", [""]),
    ("a\nb", ["a", "b"]),
    ("a\n\nb", ["a", "", "b"]),
    ("a\n", ["a", ""]),
    ("\n", ["", ""]),
    ("'a b' c", ["a b", "c"]),
    ('"a b" c', ["a b", "c"]),
    ("a'b'\"c\"d", ["abcd"]),
    ("a '' b \"\"", ["a", "", "b", ""]),
    ("'a\\b'", ["a\\b"]),
    ("'a\"b'", ['a"b']),
    ('"a\'b"', ["a'b"]),
    (r'"a\"b"', ['a"b']),
    (r'"a\\"', ["a\\"]),
    (r'"\`\$\a"', ["`$\\a"]),
    (r'"a\b\\\"c"', ['a\\b\\"c']),
    ('"a\\\nb"', ["a\nb"]),
    ("a\\\nb", ["ab"]),
    (r"a\ b", ["a b"]),
    (r"a\'b \\ \#", ["a'b", "\\", "#"]),
    ("a # comment", ["a", ""]),
    ("a # comment\nb", ["a", "b"]),
    ("a#comment\nb", ["ab"]),
    ("# comment", [""]),
    ("$HOME `id` * ~ > x & ; |", ["$HOME", "`id`", "*", "~", ">", "x", "&", ";", "|"]),
    ("é 'ü'", ["é", "ü"]),
]


@pytest.mark.parametrize(("text", "arguments"), COMMAND_LINES)
def test_a_command_line_is_split(text: str, arguments: list[str]) -> None:
    assert split_command_line(text) == arguments


@pytest.mark.parametrize("text", ["'", '"', "a 'b", 'a "b', "a\\", '"\\"', "a#", "'a'b'"])
def test_quotes_must_match(text: str) -> None:
    with pytest.raises(CommandLineError, match="Unclosed quotes in command line"):
        split_command_line(text)


def test_a_service_with_a_bad_command_line_is_known_all_the_same() -> None:
    service = parse_service_file(PLAIN.replace("/bin/a", "/bin/a 'b"), PATH)
    assert service.name == "com.example.A"
    with pytest.raises(CommandLineError):
        service.argv()


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=10), min_size=1, max_size=5))
def test_quoted_arguments_arrive_as_they_are(arguments: list[str]) -> None:
    command_line = " ".join("'" + argument.replace("'", "'\\''") + "'" for argument in arguments)
    assert split_command_line(command_line) == arguments


@given(st.text(st.sampled_from("ab '\"\\#\n\t$"), max_size=12))
def test_any_command_line_is_split_or_refused(text: str) -> None:
    try:
        assert split_command_line(text)
    except CommandLineError:
        assert set(text) & set("'\"\\#")


def test_the_first_directory_wins(tmp_path: Path) -> None:
    write_service(tmp_path / "one", "x.service", "com.example.A", "/bin/one")
    write_service(tmp_path / "two", "a.service", "com.example.A", "/bin/two")
    write_service(tmp_path / "two", "b.service", "com.example.B", "/bin/two")
    services = load_service_directories([str(tmp_path / "one"), str(tmp_path / "two")])
    assert {name: service.exec for name, service in services.items()} == {
        "com.example.A": "/bin/one",
        "com.example.B": "/bin/two",
    }


def test_in_one_directory_the_first_file_by_name_wins(tmp_path: Path) -> None:
    for letter in "cab":
        write_service(tmp_path, f"{letter}.service", "com.example.A", f"/bin/{letter}")
    assert load_service_directories([str(tmp_path)])["com.example.A"].exec == "/bin/a"


def test_only_service_files_are_read(tmp_path: Path) -> None:
    write_service(tmp_path, "a.service.bak", "com.example.A")
    write_service(tmp_path, "a", "com.example.B")
    write_service(tmp_path, ".service", "com.example.C")
    assert list(load_service_directories([str(tmp_path)])) == ["com.example.C"]


def test_the_name_need_not_be_that_of_the_file_nor_a_bus_name(tmp_path: Path) -> None:
    write_service(tmp_path, "a.service", "com.example.Other")
    write_service(tmp_path, "b.service", "not a bus name")
    assert list(load_service_directories([str(tmp_path)])) == ["com.example.Other", "not a bus name"]


def test_a_strict_directory_insists_on_the_name(tmp_path: Path) -> None:
    write_service(tmp_path, "com.example.A.service", "com.example.A")
    write_service(tmp_path, "b.service", "com.example.B")
    problems: list[ServiceFileError] = []
    services = load_service_directories([str(tmp_path)], strict=True, on_problem=problems.append)
    assert list(services) == ["com.example.A"]
    assert [str(problem) for problem in problems] == [
        f'{tmp_path}/b.service: should have been named "com.example.B.service": not loading it'
    ]


def test_one_directory_of_several_can_be_strict(tmp_path: Path) -> None:
    strict, lax = str(tmp_path / "strict"), str(tmp_path / "lax")
    write_service(Path(strict), "a.service", "com.example.A", "/bin/strict")
    write_service(Path(lax), "a.service", "com.example.A", "/bin/lax")
    services = load_service_directories([strict, lax], strict={strict})
    assert services["com.example.A"].exec == "/bin/lax"


def test_a_directory_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    write_service(tmp_path / "good", "a.service", "com.example.A")
    (tmp_path / "file").touch()
    directories = [str(tmp_path / name) for name in ("missing", "file", "good")]
    assert list(load_service_directories(directories)) == ["com.example.A"]


def test_a_bad_file_is_reported_and_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "0.service").write_bytes(b"[D-BUS Service]\nName=a.b\nExec=/a\n#\xff\n")
    (tmp_path / "1.service").write_text("[D-BUS Service]\nName\n")
    (tmp_path / "2.service").write_text(PLAIN + "#" * (128 * 1024))
    (tmp_path / "3.service").mkdir()
    (tmp_path / "4.service").symlink_to("nowhere")
    write_service(tmp_path, "5.service", "com.example.A")
    problems: list[ServiceFileError] = []
    services = load_service_directories([str(tmp_path)], on_problem=problems.append)
    assert list(services) == ["com.example.A"]
    assert [str(problem).removeprefix(f"{tmp_path}/") for problem in problems] == [
        "0.service: invalid UTF-8",
        "1.service:2: No '=' in key/value pair",
        "2.service: larger than 131072 bytes",
        "3.service: Is a directory",
        "4.service: No such file or directory",
    ]


def test_a_file_of_128_kib_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.service").write_text(PLAIN + "#" * (128 * 1024 - len(PLAIN)))
    assert list(load_service_directories([str(tmp_path)])) == ["com.example.A"]


def test_the_session_directories_come_in_the_order_of_dbus_daemon() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/1", "XDG_DATA_HOME": "/data", "XDG_DATA_DIRS": "/x:/y"}
    assert standard_session_service_directories(environ) == [
        "/run/user/1/dbus-1/services",
        "/data/dbus-1/services",
        "/x/dbus-1/services",
        "/y/dbus-1/services",
        "/usr/share/dbus-1/services",
    ]


def test_the_session_directories_have_defaults() -> None:
    assert standard_session_service_directories({}, home="/home/ada") == [
        "/home/ada/.local/share/dbus-1/services",
        "/usr/local/share/dbus-1/services",
        "/usr/share/dbus-1/services",
    ]


def test_the_home_is_that_of_the_user_database() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir
    directories = standard_session_service_directories({"HOME": "/somewhere/else"})
    assert directories[0] == f"{home}/.local/share/dbus-1/services"


def test_empty_and_repeated_session_directories_are_left_out() -> None:
    environ = {"XDG_DATA_HOME": "", "XDG_DATA_DIRS": ":/x:: /y : :/x:/usr/share"}
    assert standard_session_service_directories(environ) == [
        "/x/dbus-1/services",
        "/y/dbus-1/services",
        "/usr/share/dbus-1/services",
    ]


def test_the_system_directories_come_in_the_order_of_dbus_daemon() -> None:
    assert standard_system_service_directories() == [
        "/usr/local/share/dbus-1/system-services",
        "/usr/share/dbus-1/system-services",
        "/lib/dbus-1/system-services",
    ]


def test_the_transient_directory_needs_a_runtime_directory() -> None:
    assert transient_session_service_directory({}) is None
    assert transient_session_service_directory({"XDG_RUNTIME_DIR": "/r"}) == "/r/dbus-1/services"
    prepare_transient_service_directory({})


def test_the_transient_directory_is_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    prepare_transient_service_directory(environ)
    prepare_transient_service_directory(environ)
    assert (tmp_path / "dbus-1" / "services").stat().st_mode & 0o777 == 0o700


def test_a_runtime_directory_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(PermissionError, match="can be written by others"):
        prepare_transient_service_directory({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_runtime_directory_of_another_user_is_not_used(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, -1)
    with pytest.raises(PermissionError, match="is owned by uid 65534, not our uid 0"):
        prepare_transient_service_directory({"XDG_RUNTIME_DIR": str(tmp_path)})


def test_a_runtime_directory_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        prepare_transient_service_directory({"XDG_RUNTIME_DIR": str(tmp_path / "missing")})
