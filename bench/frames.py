"""A receive buffer and the messages in it.

Answers are told apart by their framing alone. A bus under load mostly sends many messages of one shape, which
then lie in the buffer as rows of a matrix of 32-bit words: `count_alike` recognises that with three
comparisons of strided columns, so that counting (and patching) them takes no Python step for each message.
Whatever is not of that shape is walked message by message.
"""

import socket

from bench.client import BusError
from bench.messages import FIXED_LENGTH, FRAMING, frame_length, parse_fields

#: Enough for 64 outstanding messages and for two large ones.
BUFFER_SIZE = 1 << 18

_framing = FRAMING.unpack_from


class Frames:
    """A receive buffer and the messages in it; a message begun moves to the front before the next read."""

    def __init__(self, connected: socket.socket) -> None:
        """A buffer that is filled from `connected`, whose owner closes it."""
        self.buffer = bytearray(BUFFER_SIZE)
        self.view = memoryview(self.buffer)
        self.words = self.view.cast("I")
        self.end = 0
        self._receive = connected.recv_into

    def read(self) -> int:
        """Read once behind what is there; the number of bytes in the buffer."""
        got = self._receive(self.view[self.end :] if self.end else self.buffer)
        if not got:
            raise BusError("the bus closed the connection")
        self.end += got
        return self.end

    def keep_from(self, offset: int) -> None:
        """Drop what is before `offset`."""
        rest = self.end - offset
        if rest and offset:
            self.buffer[:rest] = self.buffer[offset : self.end]
        self.end = rest

    def count_alike(self, kind: int) -> tuple[int, int]:
        """Number and length of the whole messages, when all are of `kind` and of one shape; (0, 0) otherwise.

        The length is a multiple of eight, so that the messages are strides of `words`.
        """
        end = self.end
        if end < FIXED_LENGTH:
            return 0, 0
        _, body_length, _, fields_length = _framing(self.buffer)
        length = frame_length(self.buffer)
        count = end // length
        if length % 8 or not count:
            return 0, 0
        stop, stride = count * length, length // 4
        if (
            self.buffer[1:stop:length] == bytes((kind,)) * count
            and self.words[1 : stop // 4 : stride].tolist() == [body_length] * count
            and self.words[3 : stop // 4 : stride].tolist() == [fields_length] * count
        ):
            return count, length
        return 0, 0

    def count(self, kind: int) -> int:
        """Take all whole messages out of the buffer and count them; BusError when one is not of `kind`."""
        count, length = self.count_alike(kind)
        if count:
            self.keep_from(count * length)
            return count
        offset, end = 0, self.end
        while end - offset >= FIXED_LENGTH:
            length = frame_length(self.buffer, offset)
            if end - offset < length:
                break
            if self.buffer[offset + 1] != kind:
                raise unexpected(bytes(self.view[offset : offset + length]))
            offset += length
            count += 1
        self.keep_from(offset)
        return count


def unexpected(message: bytes) -> BusError:
    """The error for a message that has no business here."""
    return BusError(f"unexpected message of type {message[1]}: {parse_fields(message)}")
