"""Clients that send whatever comes to mind: the server neither fails nor keeps anything of it."""

from __future__ import annotations

import os
import random
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.nodes import (
    BUS_NAME,
    EVERYTHING,
    NodeWorld,
    RawClient,
    command,
    count_fds,
    fds_item,
    item,
    send_body,
    string_item,
)

from kdbus_core.abi import Command, ItemType
from kdbus_core.transport.files import make_memfd

REQUESTS = 1500


class Hostile:
    """Requests at random, most of them nearly right."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def request(self) -> tuple[int, bytes]:
        dice = self.random.random()
        if dice < 0.4:
            number, body = int(Command.SEND), self._send()
        elif dice < 0.8:
            chosen = self.random.choice(list(Command))
            number, body = int(chosen), self._command(chosen)
        else:
            number = self.random.choice([0, 1 << 63, 0x801095F0, *map(int, Command)])
            body = self.random.randbytes(self.random.randrange(100))
        if body and self.random.random() < 0.2:
            changed = bytearray(body)
            changed[self.random.randrange(len(body))] = self.random.randrange(256)
            body = bytes(changed)
        return number, body

    def _send(self) -> bytes:
        choice, dice = self.random.choice, self.random.random
        deadline = time.monotonic_ns() + self.random.randrange(10**8)
        return send_body(
            self.random.randbytes(self.random.randrange(200)),
            dst_id=choice([0, 2, 3, 4, 5, EVERYTHING]),
            flags=choice([0, 1, 1, 4]),
            cookie=self.random.randrange(5),
            timeout_or_reply=choice([0, 1, 2, 3, deadline]),
            send_flags=choice([0, 1]),
            items=[fds_item(0, 1)] if dice() < 0.4 else [],
            send_items=[item(ItemType.CANCEL_FD, struct.pack("=i", 0))] if dice() < 0.3 else [],
        )

    def _command(self, number: Command) -> bytes:
        choice = self.random.choice
        fields = [choice([0, 1, 2, 1 << 16, 1 << 20]) for _ in range(self.random.randrange(3))]
        name = string_item(
            choice([ItemType.NAME, ItemType.MAKE_NAME]), choice([f"{BUS_NAME}2", "org.example.A"])
        )
        return command(
            number,
            *(fields if number is not Command.BUS_MAKE else ()),
            flags=choice([0, 0, 0, 1, 2, 8, 1 << 63]),
            items=[name] if self.random.random() < 0.3 else [],
        )

    def files(self) -> list[int]:
        return [self._file() for _ in range(self.random.choice([0, 0, 0, 1, 2, 3]))]

    def _file(self) -> int:
        match self.random.randrange(4):
            case 0:
                return os.memfd_create("unsealed", os.MFD_CLOEXEC)
            case 1:
                return make_memfd(b"sealed", name="sealed", sealed=True)
            case 2:
                return os.eventfd(self.random.randrange(2))
            case _:
                return os.dup(0)


def take_all(client: RawClient) -> bool:
    """Take what has been answered; whether the handle is still open."""
    client.sock.settimeout(0)
    try:
        while client.take() is not None:
            while len(client.fds) > 2:
                os.close(client.fds.pop())
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("seed", range(3))
def test_whatever_clients_send_nothing_is_left(tmp_path: Path, seed: int) -> None:
    hostile = Hostile(seed)
    world = NodeWorld(tmp_path / "n")
    clients: list[RawClient] = []
    try:
        world.make_bus()
        before = world.run(count_fds)
        for _ in range(REQUESTS):
            if len(clients) < 6:
                clients.append(world.connect(*hostile.random.choice([("control",), (BUS_NAME, "bus")])))
                hello = command(Command.HELLO, EVERYTHING, EVERYTHING, 0, 0, 1 << 16, flags=1)
                clients[-1].post(Command.HELLO, hello)
            client = hostile.random.choice(clients)
            number, body = hostile.request()
            fds = hostile.files()
            with suppress(BlockingIOError, BrokenPipeError):  # it is answered first; it has been refused
                client.post(number, body, fds=fds, flags=hostile.random.choice([0, 0, 0, 1, 2, 3, 4]))
            for fd in fds:
                os.close(fd)
            if not take_all(client) or hostile.random.random() < 0.01:
                client.close()
                clients.remove(client)
        assert world.warnings == []
        for client in clients:
            client.close()
        world.wait_until(lambda: world.server.handles == 1)
        assert world.run(count_fds) == before
        assert world.hello().id
    finally:
        world.close()
