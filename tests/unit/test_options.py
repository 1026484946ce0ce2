"""What a command line means, and that it is refused with the words of dbus-daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from busproxy.options import (
    USAGE,
    Action,
    Options,
    Syslog,
    UsageError,
    parse_options,
    standard_config_file,
)

REPOSITORY = Path(__file__).parents[2]


def parse(*words: str) -> Options:
    return parse_options(words, find_config=lambda kind: f"/etc/{kind}.conf")


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as error:
        parse(*words)
    assert error.value.status == 1
    return str(error.value)


def test_a_configuration_is_all_that_is_needed() -> None:
    assert parse("--session") == Options(config_file="/etc/session.conf")
    assert parse("--system") == Options(config_file="/etc/system.conf")


@pytest.mark.parametrize("words", [["--config-file=/a"], ["--config-file", "/a"]])
def test_the_configuration_file_stands_after_equals_or_in_the_next_word(words: list[str]) -> None:
    assert parse(*words).config_file == "/a"


@pytest.mark.parametrize("words", [["--address=unix:path=/a"], ["--address", "unix:path=/a"]])
def test_the_address_stands_after_equals_or_in_the_next_word(words: list[str]) -> None:
    assert parse("--session", *words).address == "unix:path=/a"


def test_an_empty_address_is_none() -> None:
    assert parse("--session", "--address=").address is None


@pytest.mark.parametrize(
    ("words", "descriptor"),
    [([], None), (["--print-address"], 1), (["--print-address=5"], 5), (["--print-address", "5"], 5)],
)
def test_printing_goes_to_a_descriptor_or_standard_output(words: list[str], descriptor: int | None) -> None:
    assert parse(*words, "--session").print_address == descriptor
    pid_words = [word.replace("address", "pid") for word in words]
    assert parse(*pid_words, "--session").print_pid == descriptor


def test_a_switch_is_never_taken_for_a_value() -> None:
    options = parse("--config-file", "--nofork", "--print-address", "--session")
    assert options == Options(config_file="/etc/session.conf", fork=False, print_address=1)


def test_a_value_option_may_be_the_value_of_the_one_before() -> None:
    assert parse("--config-file", "--address").config_file == "--address"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", Options()),
        ("--fork", Options(fork=True)),
        ("--fork --nofork", Options(fork=False)),
        ("--nofork --fork", Options(fork=True)),
        ("--nopidfile", Options(write_pidfile=False)),
        ("--nosyslog", Options(syslog=Syslog.NEVER)),
        ("--syslog", Options(syslog=Syslog.ALSO)),
        ("--nosyslog --syslog-only", Options(syslog=Syslog.ONLY)),
        ("--systemd-activation", Options(systemd_activation=True)),
        ("--loop=uvloop", Options(loop="uvloop")),
        ("--loop asyncio", Options(loop="asyncio")),
    ],
)
def test_switches(words: str, expected: Options) -> None:
    expected.config_file = "/etc/session.conf"
    assert parse("--session", *words.split()) == expected


def test_the_command_line_of_the_systemd_unit_is_understood() -> None:
    words = "--session --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only"
    assert parse(*words.split()) == Options(
        config_file="/etc/session.conf",
        address="systemd:",
        fork=False,
        write_pidfile=False,
        systemd_activation=True,
        syslog=Syslog.ONLY,
    )


@pytest.mark.parametrize(
    ("word", "action"), [("--version", Action.VERSION), ("--introspect", Action.INTROSPECT)]
)
def test_version_and_introspection_need_no_configuration_and_end_the_reading(
    word: str, action: Action
) -> None:
    assert parse(word, "--bogus").action is action


@pytest.mark.parametrize(
    "word", ["--help", "-h", "-?", "--bogus", "--", "word", "", "--ready-event-handle=1"]
)
def test_anything_else_is_answered_with_the_usage(word: str) -> None:
    assert refusal("--session", word) == USAGE


def test_what_comes_first_wins_over_a_later_version() -> None:
    assert refusal("--bogus", "--version") == USAGE


def test_without_a_configuration_nothing_starts() -> None:
    expected = f"No configuration file specified.\n{USAGE}"
    assert refusal() == expected
    assert refusal("--config-file") == expected
    assert refusal("--config-file=") == expected
    assert refusal("--address=x") == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "--session --session",
            "--session specified but configuration file /etc/session.conf already requested",
        ),
        ("--config-file=/x --system", "--system specified but configuration file /x already requested"),
        (
            "--config-file /x --config-file /y",
            "--config-file specified but configuration file /x already requested",
        ),
        ("--address=a --address b", "--address specified but address a already requested"),
        (
            "--print-address=3 --print-address=4",
            "--print-address specified but printing address to 3 already requested",
        ),
        ("--print-pid 3 --print-pid 4", "--print-pid specified but printing pid to 3 already requested"),
    ],
)
def test_a_value_given_twice_is_refused(words: str, text: str) -> None:
    assert refusal(*words.split()) == text


@pytest.mark.parametrize("value", ["abc", "1x", "-1", "2147483648", "\N{SUPERSCRIPT TWO}"])
def test_a_descriptor_must_be_a_number(value: str) -> None:
    text = f'Invalid file descriptor: "{value}"'
    assert refusal("--session", f"--print-address={value}") == text
    assert refusal("--session", f"--print-pid={value}") == text


@pytest.mark.parametrize("words", ["--loop=epoll", "--loop", "--loop="])
def test_an_unknown_loop_is_refused(words: str) -> None:
    assert refusal("--session", words).startswith("Invalid loop: ")


@pytest.mark.parametrize("kind", ["session", "system"])
def test_the_machines_own_configuration_is_preferred(kind: str) -> None:
    assert standard_config_file(kind, exists=lambda _: True) == f"/usr/share/dbus-1/{kind}.conf"


@pytest.mark.parametrize("kind", ["session", "system"])
def test_without_one_the_packaged_configuration_is_used(kind: str) -> None:
    path = standard_config_file(kind, exists=lambda _: False)
    assert os.path.isfile(path)
    assert Path(path).read_bytes() == (REPOSITORY / "conf" / f"{kind}.conf").read_bytes()


DAEMON = shutil.which("dbus-daemon")


@pytest.mark.program("dbus-daemon")
@pytest.mark.parametrize(
    "words",
    [
        "--bogus",
        "--",
        "--help",
        "--session --session",
        "--config-file=/x --session",
        "--config-file /x --config-file --address",
        "--address=a --address b",
        "--print-address=3 --print-address=4",
        "--print-pid 3 --print-pid 4",
        "--config-file",
        "--print-address",
        "--session --print-address=abc",
        "--session --print-pid=-1",
        "--session --print-pid=2147483648",
    ],
)
def test_dbus_daemon_refuses_with_the_same_words(words: str) -> None:
    assert DAEMON is not None
    done = subprocess.run([DAEMON, *words.split()], capture_output=True, text=True, check=False)
    with pytest.raises(UsageError) as error:
        parse_options(words.split(), find_config=lambda kind: f"/usr/share/dbus-1/{kind}.conf")
    ours = str(error.value).replace(USAGE, "<usage>")
    theirs = "\n".join("<usage>" if "[--version]" in line else line for line in done.stderr.splitlines())
    assert (ours, error.value.status) == (theirs, done.returncode)


@pytest.mark.program("dbus-daemon")
def test_our_usage_has_every_option_of_dbus_daemon() -> None:
    assert DAEMON is not None
    done = subprocess.run([DAEMON, "--help"], capture_output=True, text=True, check=False)
    assert set(done.stderr.split()[1:]) <= set(USAGE.split()[1:])
