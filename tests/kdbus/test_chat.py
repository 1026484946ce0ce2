"""Two connections that talk for a while: names change hands, answers go back and forth, nothing runs out."""

from __future__ import annotations

from errno import ESRCH

from support.kdbus import Client, Name, World, refused
from support.kdbus.layout import DST_BROADCAST

COOKIE = 0xC0000000
ROUNDS = 50


def test_asking_again_for_a_name_one_owns_succeeds_and_acquires_nothing(world: World) -> None:
    client = world.connect()
    assert client.name_acquire("foo.bar.double") == Name.PRIMARY | Name.ACQUIRED
    assert client.name_acquire("foo.bar.double") == Name.PRIMARY


def test_a_name_is_released_once(world: World) -> None:
    client = world.connect()
    client.name_acquire("foo.bar.double")
    client.name_release("foo.bar.double")
    with refused(ESRCH):
        client.name_release("foo.bar.double")


def acquire_names(first: Client, second: Client) -> None:
    first.name_acquire("foo.bar.test", Name.ALLOW_REPLACEMENT)
    first.name_acquire("foo.bar.baz")
    second.name_acquire("foo.bar.baz", Name.QUEUE)


def test_a_long_chat_ends_well(world: World) -> None:
    first, second = world.connect(), world.connect()
    acquire_names(first, second)
    for client in (first, second):
        client.add_match_empty()
    cookie = COOKIE
    second.send(DST_BROADCAST, cookie=cookie)
    first_said: list[int] = []
    second_said: list[int] = []
    for count in range(ROUNDS):
        if count == 3:
            first.name_release("foo.bar.baz")
        assert first.is_readable
        first_said.append(first.recv().cookie)
        cookie += 1
        first.send(second, cookie=cookie)
        assert second.is_readable
        second_said.append(second.recv().cookie)
        cookie += 1
        second.send(first, cookie=cookie)
        assert len(first.list_records()) >= 2
    # The second one heard its own broadcast and so is one message behind.
    assert first_said == [COOKIE + 2 * count for count in range(ROUNDS)]
    assert second_said == [COOKIE] + [COOKIE + 1 + 2 * count for count in range(ROUNDS - 1)]


def test_the_one_who_waited_for_a_name_has_it_after_its_release(world: World) -> None:
    first, second = world.connect(), world.connect()
    acquire_names(first, second)
    first.name_release("foo.bar.baz")
    assert second.list_names() == {
        (first.id, "foo.bar.test", Name.PRIMARY | Name.ALLOW_REPLACEMENT),
        (second.id, "foo.bar.baz", Name.PRIMARY | Name.QUEUE),
    }
