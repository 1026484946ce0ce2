"""File descriptors among the values of a message.

In a message a value of type h is an index into the descriptors that go along. Here it is the descriptor: an
open file or a number when it is sent, a `Descriptor` when it was received. What is sent stays the sender's,
but for a `Descriptor` that a handler returns: that is given away.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from busproxy.wire.signatures import complete_types, split_types


class HasFileno(Protocol):
    """What has a descriptor: files, sockets, `Descriptor`."""

    def fileno(self) -> int:
        """The descriptor."""


FileLike: TypeAlias = int | HasFileno


class Descriptor:
    """A file descriptor that came with a message, or is to be given away; who has it closes it."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> Descriptor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<descriptor {self._fd}>" if self._fd >= 0 else "<descriptor, gone>"

    def __del__(self) -> None:
        if self._fd >= 0:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def fileno(self) -> int:
        """The descriptor, still owned by this object; ValueError once it is gone."""
        if self._fd < 0:
            raise ValueError("the descriptor is closed, or somebody else's")
        return self._fd

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on; ValueError once it is gone."""
        fd, self._fd = self.fileno(), -1
        return fd

    def close(self) -> None:
        """Close it; twice is as good as once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def take_files(signature: str, values: Sequence[Any]) -> tuple[Sequence[Any], list[int]]:
    """Values with indices in place of files, and the descriptors in the order of the indices.

    Raises `TypeError` for an h that is no file.
    """
    if "h" not in signature and "v" not in signature:
        return values, []
    fds: list[int] = []

    def take(value: Any) -> int:
        if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "fileno")):
            raise TypeError(f"{value!r} is not a file")
        fds.append(value if isinstance(value, int) else value.fileno())
        return len(fds) - 1

    return _replace_all(signature, values, take), fds


def close_given(signature: str, values: Sequence[Any]) -> None:
    """Close every `Descriptor` among values; other files stay open."""
    if "h" not in signature and "v" not in signature:
        return

    def close(value: Any) -> None:
        if isinstance(value, Descriptor):
            value.close()

    _replace_all(signature, values, close)


def put_files(signature: str, values: Sequence[Any], files: Sequence[Descriptor]) -> Sequence[Any]:
    """Values with files in place of indices; `ValueError` for an index that has no file."""
    if "h" not in signature and "v" not in signature:
        return values

    def put(index: int) -> Descriptor:
        if index >= len(files):
            raise ValueError(f"descriptor {index} of {len(files)}")
        return files[index]

    return _replace_all(signature, values, put)


def _replace_all(signature: str, values: Sequence[Any], replace: Callable[[Any], Any]) -> list[Any]:
    types = complete_types(signature)
    if len(types) != len(values):
        raise ValueError(f"{len(values)} values for signature {signature!r}")
    return [_replace(type_, value, replace) for type_, value in zip(types, values, strict=True)]


def _replace(type_: str, value: Any, replace: Callable[[Any], Any]) -> Any:
    if type_ == "h":
        return replace(value)
    if "h" not in type_ and "v" not in type_:
        return value
    if type_ == "v":
        signature, content = value
        return signature, _replace(signature, content, replace)
    if type_[0] == "(":
        return tuple(
            _replace(member, item, replace)
            for member, item in zip(split_types(type_[1:-1]), value, strict=True)
        )
    if type_[1] == "{":
        key, content = split_types(type_[2:-1])
        return {
            _replace(key, name, replace): _replace(content, item, replace) for name, item in value.items()
        }
    return [_replace(type_[1:], item, replace) for item in value]
