"""The keyring of DBUS_COOKIE_SHA1: secrets in a file that only one user can read.

Whoever can answer a challenge with such a secret can read the file, hence is that user (specification,
"DBUS_COOKIE_SHA1"). The file is shared with every libdbus server and client of the user, so its format, its
lock and its ages are theirs: one line "ID TIME HEX" a cookie, in `DIRECTORY/CONTEXT`, written anew under the
lock file `DIRECTORY/CONTEXT.lock` and moved into place.

What always holds: nothing is read from or written to a directory that others may read or write, or that
another user owns. A cookie is offered for 5 minutes and honoured for 7, so a conversation has 2 at least. The
lock is held for the time of one write; one that is older than `STALE_LOCK_SECONDS` was left by a dead process
and is taken over. Waiting for it takes 50 ms at most, since a whole bus waits meanwhile: then the client is
refused and may try again.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from busproxy.wire.sasl import CookieError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_CONTEXT", "Keyring"]

DEFAULT_CONTEXT: Final = "org_freedesktop_general"

OFFER_SECONDS: Final = 5 * 60
EXPIRE_SECONDS: Final = 7 * 60
MAX_FUTURE_SECONDS: Final = 5 * 60
"""How far ahead of our clock a cookie's may be."""
MAX_COOKIES: Final = 256
STALE_LOCK_SECONDS: Final = 8

_LOCK_ATTEMPTS: Final = 10
_LOCK_PAUSE_SECONDS: Final = 0.005
_SECRET_BYTES: Final = 24
_CHALLENGE_BYTES: Final = 16
_MAX_ID: Final = 2**31 - 1
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OTHERS_MAY_READ_OR_WRITE: Final = 0o066


@dataclass(frozen=True, slots=True)
class _Cookie:
    id: int
    created: int
    secret: str


class Keyring:
    """The cookies of one context in one directory, for the user the daemon runs as.

    `directory` is made (mode 0700) when it is missing. `clock` gives seconds since 1970, `sleep` waits some.
    """

    def __init__(
        self,
        directory: Path,
        *,
        context: str = DEFAULT_CONTEXT,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not context or not context.isascii() or set(context) & set("/\\. \t\r\n\0"):
            raise ValueError(f"not the name of a cookie context: {context!r}")
        self._directory = directory
        self._context = context
        self._path = directory / context
        self._lock_path = directory / f"{context}.lock"
        self._clock = clock
        self._sleep = sleep
        self._cookies: dict[int, _Cookie] = {}

    @property
    def context(self) -> str:
        """The name of the file, which the client is told."""
        return self._context

    @property
    def uid(self) -> int:
        """The user these cookies are for."""
        return os.geteuid()

    def choose_cookie(self) -> int:
        """Give the id of a cookie younger than 5 minutes, made now if there is none.

        Raise `CookieError` when the directory is not private or the file cannot be written.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._require_private_directory()
            self._remember(self._load())
            if (recent := self._find_recent()) is None:
                with self._locked():
                    # Read again: somebody may have added one while we waited for the lock.
                    self._remember(self._load())
                    if (recent := self._find_recent()) is None:
                        recent = self._add()
        except OSError as error:
            raise CookieError(f"the keyring {self._path} cannot be used: {error}") from error
        return recent.id

    def cookie_secret(self, cookie_id: int) -> str | None:
        """Give the secret (hex) of a cookie that the last `choose_cookie` saw, unless it has expired."""
        cookie = self._cookies.get(cookie_id)
        if cookie is None or not self._is_alive(cookie.created):
            return None
        return cookie.secret

    def new_challenge(self) -> str:
        """Give 128 random bits in hex."""
        return secrets.token_hex(_CHALLENGE_BYTES)

    def _require_private_directory(self) -> None:
        status = self._directory.stat()
        if status.st_uid != os.geteuid():
            raise CookieError(
                f"the keyring directory {self._directory} is owned by uid {status.st_uid}, not {os.geteuid()}"
            )
        if status.st_mode & _OTHERS_MAY_READ_OR_WRITE:
            raise CookieError(f"the keyring directory {self._directory} is not private to the user")

    def _is_alive(self, created: int) -> bool:
        now = int(self._clock())
        return now - EXPIRE_SECONDS <= created <= now + MAX_FUTURE_SECONDS

    def _find_recent(self) -> _Cookie | None:
        oldest = int(self._clock()) - OFFER_SECONDS
        return next((cookie for cookie in self._cookies.values() if cookie.created > oldest), None)

    def _remember(self, cookies: list[_Cookie]) -> None:
        self._cookies = {}
        for cookie in cookies:
            self._cookies.setdefault(cookie.id, cookie)

    def _load(self) -> list[_Cookie]:
        """Read the cookies that have not expired; lines that are none are passed over."""
        try:
            text = self._path.read_bytes().decode("ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        cookies = []
        for line in text.splitlines():
            cookie = _parse_cookie(line)
            if cookie is not None and self._is_alive(cookie.created):
                cookies.append(cookie)
        return cookies[:MAX_COOKIES]

    def _add(self) -> _Cookie:
        """Make a cookie and write the file anew; to be called under the lock, right after reading."""
        cookie_id = secrets.randbelow(_MAX_ID + 1)
        while cookie_id in self._cookies:
            cookie_id = secrets.randbelow(_MAX_ID + 1)
        cookie = _Cookie(cookie_id, int(self._clock()), secrets.token_hex(_SECRET_BYTES))
        kept = [*list(self._cookies.values())[: MAX_COOKIES - 1], cookie]
        self._save("".join(f"{each.id} {each.created} {each.secret}\n" for each in kept))
        self._cookies = {each.id: each for each in kept}
        return cookie

    def _save(self, text: str) -> None:
        new_path = self._directory / f"{self._context}.{secrets.token_hex(8)}"
        descriptor = os.open(new_path, _NEW_FILE, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new_path.replace(self._path)
        except BaseException:
            new_path.unlink(missing_ok=True)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock()
        try:
            yield
        finally:
            self._lock_path.unlink(missing_ok=True)

    def _lock(self) -> None:
        for attempt in range(_LOCK_ATTEMPTS):
            if attempt:
                self._sleep(_LOCK_PAUSE_SECONDS)
            try:
                descriptor = os.open(
                    self._lock_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
                )
            except FileExistsError:
                self._drop_stale_lock()
            else:
                os.close(descriptor)
                return
        raise CookieError(f"the keyring's lock file {self._lock_path} is held by somebody else")

    def _drop_stale_lock(self) -> None:
        with suppress(FileNotFoundError):
            if self._clock() - self._lock_path.stat().st_mtime > STALE_LOCK_SECONDS:
                self._lock_path.unlink()


def _parse_cookie(line: str) -> _Cookie | None:
    fields = line.split()
    if len(fields) != 3:
        return None
    try:
        cookie_id, created = int(fields[0]), int(fields[1])
        secret = bytes.fromhex(fields[2]).hex()
    except ValueError:
        return None
    if not 0 <= cookie_id <= _MAX_ID:
        return None
    return _Cookie(cookie_id, created, secret)
