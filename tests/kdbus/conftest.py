"""What the tests of the kdbus commands share: a world that is seen to end empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.kdbus import World


@pytest.fixture
def world() -> Iterator[World]:
    """A domain with one bus of uid 1000."""
    world = World()
    yield world
    world.tear_down()
