"""Tables of errnos that tests are made of, and the handles that stand at the head of their columns."""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterator
from typing import NamedTuple

from support.kdbus import Client, World

NAME = "foo.bar.baz"


class Cell(NamedTuple):
    """A row and a column, and the errno where they meet; 0 is `ok`."""

    row: str
    column: str
    errno: int

    def __str__(self) -> str:
        return f"{self.column} {self.row}"


def read_table(table: str) -> Iterator[Cell]:
    head, *rows = table.strip().splitlines()
    columns = head.split()
    for row in rows:
        label, *entries = row.split()
        for column, entry in zip(columns, entries, strict=True):
            yield Cell(label, column, 0 if entry == "ok" else getattr(errnos, entry))


def make(world: World, state: str) -> Client:
    """A handle in a state, or a connection of a kind."""
    match state:
        case "control":
            return world.open_control(world.task(0, privileged=True))
        case "bus-owner":
            return world.maker
        case "domain-owner":
            client = world.open_control(world.task(0, privileged=True))
            client.domain_make("inner")
            return client
        case "endpoint":
            return world.open()
        case "custom":
            return world.open(world.make_endpoint("1000-custom")[1])
        case "endpoint-owner":
            return world.make_endpoint("1000-custom")[0]
        case "ordinary":
            return world.connect()
        case "monitor":
            return world.connect_monitor()
        case "activator":
            return world.connect_activator(NAME)
        case _:
            return world.connect_holder(NAME)
