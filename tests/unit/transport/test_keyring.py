"""The cookie keyring: what is offered, what is kept, and whom it does not trust."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from busproxy.transport.keyring import DEFAULT_CONTEXT, EXPIRE_SECONDS, OFFER_SECONDS, Keyring
from busproxy.wire.sasl import CookieError, CookieSource

NOW = 1_700_000_000
SECRET = "00112233445566778899aabbccddeeff0011223344556677"


class Clock:
    """A clock that stands still, and a sleep that moves it."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / ".dbus-keyrings"
    directory.mkdir(mode=0o700)
    return directory


def make_keyring(directory: Path, clock: Clock, context: str = DEFAULT_CONTEXT) -> Keyring:
    return Keyring(directory, context=context, clock=clock, sleep=clock.sleep)


def write_cookies(directory: Path, *lines: str) -> None:
    (directory / DEFAULT_CONTEXT).write_text("".join(f"{line}\n" for line in lines))


def read_cookies(directory: Path) -> list[list[str]]:
    return [line.split(" ") for line in (directory / DEFAULT_CONTEXT).read_text().splitlines()]


def test_it_is_a_source_of_cookies(directory: Path, clock: Clock) -> None:
    source: CookieSource = make_keyring(directory, clock)
    assert (source.context, source.uid) == ("org_freedesktop_general", os.geteuid())


def test_the_first_cookie_makes_a_private_directory_and_file(tmp_path: Path, clock: Clock) -> None:
    directory = tmp_path / "new"
    keyring = make_keyring(directory, clock)
    cookie_id = keyring.choose_cookie()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / DEFAULT_CONTEXT).stat().st_mode & 0o777 == 0o600
    assert read_cookies(directory) == [[str(cookie_id), str(NOW), keyring.cookie_secret(cookie_id)]]
    assert [path.name for path in directory.iterdir()] == [DEFAULT_CONTEXT]


def test_a_secret_has_192_bits(directory: Path, clock: Clock) -> None:
    keyring = make_keyring(directory, clock)
    assert re.fullmatch(r"[0-9a-f]{48}", keyring.cookie_secret(keyring.choose_cookie()) or "")


def test_challenges_have_128_bits_and_differ(directory: Path, clock: Clock) -> None:
    keyring = make_keyring(directory, clock)
    one, other = keyring.new_challenge(), keyring.new_challenge()
    assert re.fullmatch(r"[0-9a-f]{32}", one)
    assert one != other


def test_a_young_cookie_is_used_again(directory: Path, clock: Clock) -> None:
    keyring = make_keyring(directory, clock)
    first = keyring.choose_cookie()
    clock.now += OFFER_SECONDS - 1
    assert keyring.choose_cookie() == first


def test_a_cookie_of_five_minutes_is_not_offered_but_honoured(directory: Path, clock: Clock) -> None:
    keyring = make_keyring(directory, clock)
    first = keyring.choose_cookie()
    secret = keyring.cookie_secret(first)
    clock.now += OFFER_SECONDS
    assert keyring.choose_cookie() != first
    assert keyring.cookie_secret(first) == secret
    assert len(read_cookies(directory)) == 2


def test_a_cookie_of_more_than_seven_minutes_is_forgotten(directory: Path, clock: Clock) -> None:
    keyring = make_keyring(directory, clock)
    first = keyring.choose_cookie()
    clock.now += EXPIRE_SECONDS + 1
    assert keyring.cookie_secret(first) is None
    second = keyring.choose_cookie()
    assert [fields[0] for fields in read_cookies(directory)] == [str(second)]


def test_an_unknown_cookie_has_no_secret(directory: Path, clock: Clock) -> None:
    assert make_keyring(directory, clock).cookie_secret(7) is None


def test_the_cookie_of_another_server_is_used(directory: Path, clock: Clock) -> None:
    write_cookies(directory, f"42 {NOW - 10} {SECRET}")
    keyring = make_keyring(directory, clock)
    assert keyring.choose_cookie() == 42
    assert keyring.cookie_secret(42) == SECRET


def test_a_secret_is_given_in_lower_case(directory: Path, clock: Clock) -> None:
    write_cookies(directory, f"42 {NOW} {SECRET.upper()}")
    keyring = make_keyring(directory, clock)
    assert keyring.cookie_secret(keyring.choose_cookie()) == SECRET


def test_of_two_cookies_with_one_id_the_first_counts(directory: Path, clock: Clock) -> None:
    write_cookies(directory, f"42 {NOW} {SECRET}", f"42 {NOW} 00")
    keyring = make_keyring(directory, clock)
    assert keyring.cookie_secret(keyring.choose_cookie()) == SECRET


@pytest.mark.parametrize(
    "line",
    [
        "",
        "words",
        f"42 {NOW}",
        f"42 {SECRET}",
        f"x {NOW} {SECRET}",
        f"42 x {SECRET}",
        f"42 {NOW} xyz",
        f"-1 {NOW} {SECRET}",
        f"2147483648 {NOW} {SECRET}",
        f"42 {NOW - EXPIRE_SECONDS - 1} {SECRET}",
        f"42 {NOW + 301} {SECRET}",
        f"42 -1 {SECRET}",
    ],
)
def test_a_line_that_is_no_living_cookie_is_passed_over(directory: Path, clock: Clock, line: str) -> None:
    write_cookies(directory, line, f"7 {NOW} {SECRET}")
    keyring = make_keyring(directory, clock)
    assert keyring.choose_cookie() == 7
    assert keyring.cookie_secret(42) is None


def test_a_file_that_is_not_ascii_is_written_anew(directory: Path, clock: Clock) -> None:
    (directory / DEFAULT_CONTEXT).write_bytes(f"42 {NOW} {SECRET}\n\xff".encode("latin-1"))
    cookie_id = make_keyring(directory, clock).choose_cookie()
    assert [fields[0] for fields in read_cookies(directory)] == [str(cookie_id)]


def test_the_file_does_not_grow_beyond_256_cookies(directory: Path, clock: Clock) -> None:
    write_cookies(directory, *(f"{number} {NOW - OFFER_SECONDS} {SECRET}" for number in range(1000)))
    cookie_id = make_keyring(directory, clock).choose_cookie()
    cookies = read_cookies(directory)
    assert len(cookies) == 256
    assert cookies[-1][0] == str(cookie_id)


@pytest.mark.parametrize("mode", [0o740, 0o720, 0o704, 0o702, 0o777])
def test_a_directory_that_others_can_use_is_not_trusted(directory: Path, clock: Clock, mode: int) -> None:
    directory.chmod(mode)
    with pytest.raises(CookieError, match="is not private to the user"):
        make_keyring(directory, clock).choose_cookie()
    assert list(directory.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_directory_of_another_user_is_not_trusted(directory: Path, clock: Clock) -> None:
    os.chown(directory, 65534, -1)
    with pytest.raises(CookieError, match="is owned by uid 65534, not 0"):
        make_keyring(directory, clock).choose_cookie()


def test_a_home_that_is_not_there_is_an_error_to_handle(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(CookieError, match="cannot be used"):
        make_keyring(tmp_path / "missing" / ".dbus-keyrings", clock).choose_cookie()


def test_a_file_in_place_of_the_directory_is_an_error_to_handle(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CookieError, match="cannot be used"):
        make_keyring(tmp_path / "file", clock).choose_cookie()


def test_a_held_lock_is_waited_for_a_moment_only(directory: Path, clock: Clock) -> None:
    lock = directory / f"{DEFAULT_CONTEXT}.lock"
    lock.touch()
    os.utime(lock, (NOW, NOW))
    with pytest.raises(CookieError, match="held by somebody else"):
        make_keyring(directory, clock).choose_cookie()
    assert clock.now - NOW < 0.1
    assert lock.exists()


def test_a_lock_that_is_given_back_meanwhile_is_taken(directory: Path, clock: Clock) -> None:
    lock = directory / f"{DEFAULT_CONTEXT}.lock"
    lock.touch()
    os.utime(lock, (NOW, NOW))
    keyring = Keyring(directory, clock=clock, sleep=lambda seconds: lock.unlink())
    assert keyring.cookie_secret(keyring.choose_cookie()) is not None


def test_a_cookie_that_came_while_waiting_for_the_lock_is_used(directory: Path, clock: Clock) -> None:
    lock = directory / f"{DEFAULT_CONTEXT}.lock"
    lock.touch()
    os.utime(lock, (NOW, NOW))

    def finish_the_other(seconds: float) -> None:
        write_cookies(directory, f"42 {NOW} {SECRET}")
        lock.unlink()

    assert Keyring(directory, clock=clock, sleep=finish_the_other).choose_cookie() == 42


def test_a_lock_of_the_dead_is_taken_over(directory: Path, clock: Clock) -> None:
    lock = directory / f"{DEFAULT_CONTEXT}.lock"
    lock.touch()
    os.utime(lock, (NOW - 9, NOW - 9))
    make_keyring(directory, clock).choose_cookie()
    assert not lock.exists()


def test_the_lock_is_given_back_after_a_failure(
    directory: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CookieError, match="No space left on device"):
        make_keyring(directory, clock).choose_cookie()
    assert list(directory.iterdir()) == []


def test_a_young_cookie_needs_no_lock(directory: Path, clock: Clock) -> None:
    write_cookies(directory, f"42 {NOW} {SECRET}")
    (directory / f"{DEFAULT_CONTEXT}.lock").touch()
    assert make_keyring(directory, clock).choose_cookie() == 42


def test_no_fd_is_left_open(directory: Path, clock: Clock) -> None:
    keyring = make_keyring(directory, clock)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        keyring.choose_cookie()
        clock.now += OFFER_SECONDS
    assert len(os.listdir("/proc/self/fd")) == before


def test_each_context_has_a_file_of_its_own(directory: Path, clock: Clock) -> None:
    make_keyring(directory, clock, context="other").choose_cookie()
    assert [path.name for path in directory.iterdir()] == ["other"]


@pytest.mark.parametrize("context", ["", "..", "a/b", "a b", "a.lock", "a\\b", "a\n", "ü"])
def test_a_context_is_a_plain_word(directory: Path, context: str) -> None:
    with pytest.raises(ValueError, match="not the name of a cookie context"):
        Keyring(directory, context=context)
