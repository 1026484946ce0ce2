"""The worked example of docs/native-protocol.md happens exactly as it is written there."""

from __future__ import annotations

import mmap
import re
import socket
import sys
from array import array
from pathlib import Path

import pytest
from support.nodes import BUS_NAME, POOL_SIZE, NodeWorld

from kdbus_core.abi import Command, ItemType
from kdbus_core.transport import protocol, server
from kdbus_core.transport.directory import MAX_ADDRESS

DOCUMENT = Path(__file__).parents[4] / "docs" / "native-protocol.md"
BLOCK = re.compile(r"\*\*(Request|Answer|In the pool)\*\*(.*?)```text\n(.*?)```", re.DOTALL)
LINE = re.compile(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)")


def load_example() -> list[tuple[str, str, bytes]]:
    """What each block is, what is said of it, and its bytes."""
    text = DOCUMENT.read_text().partition("## A worked example")[2]
    blocks = []
    for kind, said, dump in BLOCK.findall(text):
        data = b""
        for line in dump.splitlines():
            found = LINE.match(line)
            assert found is not None, line
            assert int(found[1], 16) == len(data), line
            data += bytes.fromhex(found[2])
        blocks.append((kind, said, data))
    return blocks


@pytest.mark.skipif(sys.byteorder != "little", reason="the example is of a little-endian machine")
def test_the_worked_example_is_true(tmp_path: Path) -> None:
    world = NodeWorld(tmp_path / "n", random_bytes=lambda size: bytes(range(size)))
    pool: mmap.mmap | None = None
    try:
        world.make_bus()
        client = world.connect(BUS_NAME, "bus")
        kinds = []
        for kind, said, data in load_example():
            kinds.append(kind)
            if kind == "Request":
                client.sock.send(data)
            elif kind == "Answer":
                answer, ancillary, _, _ = client.sock.recvmsg(1 << 18, 2048, socket.MSG_CMSG_CLOEXEC)
                fds = array("i", b"".join(data for _, _, data in ancillary))
                client.fds += fds
                assert answer.hex(" ") == data.hex(" ")
                assert len(fds) == 2 * ("two descriptors" in said)
                if fds:
                    pool = mmap.mmap(fds[0], POOL_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
            else:
                assert pool is not None
                assert pool[: len(data)].hex(" ") == data.hex(" ")
        assert kinds.count("Request") == 5
        assert kinds.count("Answer") == 4
    finally:
        if pool is not None:
            pool.close()
        world.close()


@pytest.mark.parametrize(
    "number",
    [
        protocol.MAX_FDS,
        protocol.MAX_PACKET,
        protocol.MAX_CARRIED,
        server.ServerLimits().handles_per_user,
        MAX_ADDRESS,
    ],
)
def test_limits_are_those_of_the_code(number: int) -> None:
    assert re.search(rf"\b{number}\b", DOCUMENT.read_text())


def test_transport_numbers_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert f"{protocol.INSPECT:#x}" in text
    flags = f"{protocol.CARRIED} CARRIED, {protocol.QUIET} QUIET, {protocol.FREEING} FREEING"
    assert flags in text


def test_every_command_is_in_the_document_with_its_number() -> None:
    text = DOCUMENT.read_text()
    for command in Command:
        assert f"| {command.name} | {int(command):#x} |" in text


def test_every_item_is_in_the_document() -> None:
    text = DOCUMENT.read_text().partition("## Items")[2].partition("## What lies in the pool")[0]
    for type in ItemType:
        assert re.search(rf"\b{type.name}\b", text), type.name
