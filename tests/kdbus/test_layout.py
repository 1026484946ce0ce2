"""The test client's own numbers: each request number says direction, size and number of its command."""

from __future__ import annotations

import pytest
from support.kdbus import layout
from support.kdbus.layout import Layout, encode_request

WRITE, READ, BOTH = 1, 2, 3


@pytest.mark.parametrize(
    ("command", "direction", "number"),
    [
        (layout.BUS_MAKE, WRITE, 0x00),
        (layout.DOMAIN_MAKE, WRITE, 0x01),
        (layout.ENDPOINT_MAKE, WRITE, 0x10),
        (layout.ENDPOINT_UPDATE, WRITE, 0x11),
        (layout.HELLO, BOTH, 0x80),
        (layout.UPDATE, WRITE, 0x81),
        (layout.BYEBYE, WRITE, 0x82),
        (layout.FREE, WRITE, 0x83),
        (layout.CONN_INFO, READ, 0x84),
        (layout.BUS_CREATOR_INFO, READ, 0x85),
        (layout.LIST, READ, 0x86),
        (layout.SEND, WRITE, 0x90),
        (layout.RECV, READ, 0x91),
        (layout.MSG_CANCEL, WRITE, 0x92),
        (layout.NAME_ACQUIRE, WRITE, 0xA0),
        (layout.NAME_RELEASE, WRITE, 0xA1),
        (layout.MATCH_ADD, WRITE, 0xB0),
        (layout.MATCH_REMOVE, WRITE, 0xB1),
    ],
)
def test_a_request_number_is_made_of_its_parts(command: Layout, direction: int, number: int) -> None:
    assert command.request == encode_request(direction, command.size, number)
