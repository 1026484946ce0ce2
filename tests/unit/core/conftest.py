"""One broker for all tests in here, and a bus of its own for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.split import Cores, SplitWorld, Stranger


@pytest.fixture(scope="session")
def cores() -> Iterator[Cores]:
    """A running kdbusd."""
    cores = Cores()
    try:
        yield cores
    finally:
        cores.close()


@pytest.fixture
def world(cores: Cores) -> Iterator[SplitWorld]:
    """A proxy in front of a fresh bus."""
    with cores.bus() as endpoint, SplitWorld(endpoint) as world:
        yield world


@pytest.fixture
def stranger(world: SplitWorld) -> Iterator[Stranger]:
    """A native connection to the bus of `world`."""
    with Stranger(world) as stranger:
        world.settle()
        yield stranger


@pytest.fixture
def strangers(world: SplitWorld) -> Iterator[Callable[[], Stranger]]:
    """Makes further native connections to the bus of `world`."""
    made: list[Stranger] = []

    def make() -> Stranger:
        made.append(Stranger(world))
        world.settle()
        return made[-1]

    yield make
    for one in made:
        one.remote.close()
