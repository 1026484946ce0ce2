"""What a match lets through: all rules of an entry, any of the entries, and nothing twice."""

from __future__ import annotations

from errno import EAGAIN, EBADSLT, EDOM, EINVAL, EMFILE, EOPNOTSUPP

import pytest
from support.kdbus import Client, ItemType, Name, Received, World, refused
from support.kdbus.layout import ANY, MATCH_REPLACE, bits, bloom_mask, id_rule, item, name, name_rule, number

NAME = "foo.bar.baz"
ID, DST_ID = ItemType.ID, ItemType.DST_ID
USER_RULES = {
    "mask": bloom_mask(bytes(64)),
    "id": number(ID, ANY),
    "dst id": number(DST_ID, ANY),
}
NOTICE_RULES = {
    "NAME_ADD": name_rule(ItemType.NAME_ADD),
    "NAME_REMOVE": name_rule(ItemType.NAME_REMOVE),
    "NAME_CHANGE": name_rule(ItemType.NAME_CHANGE),
    "ID_ADD": id_rule(ItemType.ID_ADD),
    "ID_REMOVE": id_rule(ItemType.ID_REMOVE),
}


@pytest.fixture
def reader(world: World) -> Client:
    return world.connect()


@pytest.fixture
def sender(world: World) -> Client:
    return world.connect()


def cause_everything(world: World, sender: Client) -> None:
    """A broadcast, and a notification of every kind that is broadcast."""
    sender.signal(cookie=77)
    first, second = world.connect(), world.connect()
    first.name_acquire(NAME, Name.ALLOW_REPLACEMENT)
    second.name_acquire(NAME, Name.REPLACE_EXISTING)
    second.close()
    first.close()


def what(message: Received) -> str:
    return message.kind.name if message.is_notification else "signal"


def heard(reader: Client) -> list[str]:
    """The kinds of what was received."""
    return [what(message) for message in reader.drain()]


EVERYTHING = [
    "signal",
    "ID_ADD",
    "ID_ADD",
    "NAME_ADD",
    "NAME_CHANGE",
    "NAME_REMOVE",
    "ID_REMOVE",
    "ID_REMOVE",
]


# Rules and families


def test_without_a_match_nothing_is_heard(world: World, reader: Client, sender: Client) -> None:
    cause_everything(world, sender)
    assert heard(reader) == []


def test_a_match_without_rules_lets_everything_through(world: World, reader: Client, sender: Client) -> None:
    reader.add_match(cookie=1)
    cause_everything(world, sender)
    assert heard(reader) == EVERYTHING
    reader.remove_match(1)
    cause_everything(world, sender)
    assert heard(reader) == []


def test_a_match_without_rules_lets_signals_to_oneself_through(reader: Client, sender: Client) -> None:
    reader.add_match()
    sender.signal(dst=reader, cookie=1)
    reader.signal(cookie=2)
    assert [message.cookie for message in reader.drain()] == [1, 2]


@pytest.mark.parametrize("rule", USER_RULES.values(), ids=USER_RULES)
def test_a_rule_for_messages_lets_no_notification_through(
    world: World, reader: Client, sender: Client, rule: bytes
) -> None:
    reader.add_match(rule)
    cause_everything(world, sender)
    assert heard(reader) == ["signal"]


@pytest.mark.parametrize("kind", NOTICE_RULES)
def test_a_rule_for_notifications_lets_only_its_own_through(
    world: World, reader: Client, sender: Client, kind: str
) -> None:
    reader.add_match(NOTICE_RULES[kind])
    cause_everything(world, sender)
    assert heard(reader) == [one for one in EVERYTHING if one == kind]


@pytest.mark.parametrize("user_rule", USER_RULES.values(), ids=USER_RULES)
@pytest.mark.parametrize("notice", NOTICE_RULES.values(), ids=NOTICE_RULES)
def test_a_match_of_both_families_lets_nothing_through(
    world: World, reader: Client, sender: Client, user_rule: bytes, notice: bytes
) -> None:
    reader.add_match(user_rule, notice)
    reader.add_match(notice, user_rule)
    cause_everything(world, sender)
    assert heard(reader) == []


@pytest.mark.parametrize("first", NOTICE_RULES)
@pytest.mark.parametrize("second", NOTICE_RULES)
def test_a_match_for_two_kinds_of_notifications_lets_none_through(
    world: World, reader: Client, sender: Client, first: str, second: str
) -> None:
    reader.add_match(NOTICE_RULES[first], NOTICE_RULES[second])
    cause_everything(world, sender)
    assert heard(reader) == [one for one in EVERYTHING if one == first == second]


def test_all_rules_of_a_match_have_to_let_a_message_through(
    world: World, reader: Client, sender: Client
) -> None:
    other = world.connect()
    reader.add_match(number(ID, sender.id), bloom_mask(bits({0: 1})), name(NAME))
    for client in (sender, other):
        client.signal(bits=bits({0: 1}), cookie=1)
    sender.name_acquire(NAME)
    sender.signal(cookie=2)
    sender.signal(bits=bits({0: 3}), cookie=3)
    other.signal(bits=bits({0: 3}), cookie=4)
    assert [message.cookie for message in reader.drain()] == [3]


def test_rules_of_one_kind_all_have_to_let_it_through(reader: Client, sender: Client) -> None:
    reader.add_match(number(ID, sender.id), number(ID, sender.id), cookie=1)
    reader.add_match(number(ID, sender.id), number(ID, reader.id), cookie=2)
    reader.add_match(bloom_mask(bits({0: 1})), bloom_mask(bits({1: 1})), cookie=3)
    sender.signal(cookie=1)
    reader.remove_match(1)
    sender.signal(cookie=2)
    sender.signal(bits=bits({0: 1}), cookie=3)
    sender.signal(bits=bits({0: 1, 1: 1}), cookie=4)
    assert [message.cookie for message in reader.drain()] == [1, 4]


def test_any_of_the_matches_lets_a_message_through_once(world: World, reader: Client, sender: Client) -> None:
    other = world.connect()
    for client in (sender, other):
        for cookie in range(3):
            reader.add_match(number(ID, client.id), cookie=cookie)
    sender.signal(cookie=1)
    other.signal(cookie=2)
    reader.signal(cookie=3)
    assert [message.cookie for message in reader.drain()] == [1, 2]


# Senders


def test_an_id_is_that_of_the_sender(world: World, reader: Client, sender: Client) -> None:
    reader.add_match(number(ID, sender.id))
    world.connect().signal(cookie=1)
    sender.signal(cookie=2)
    assert [message.cookie for message in reader.drain()] == [2]


def test_zero_is_nobodys_id(reader: Client, sender: Client) -> None:
    reader.add_match(number(ID, 0))
    sender.signal()
    assert not reader.is_readable


def test_a_name_has_to_be_owned_when_the_message_is_sent(
    world: World, reader: Client, sender: Client
) -> None:
    other = world.connect()
    reader.add_match(name(NAME))
    sender.signal(cookie=1)
    sender.name_acquire(NAME)
    sender.signal(cookie=2)
    other.name_acquire(NAME, Name.QUEUE)
    other.signal(cookie=3)  # only waits for it
    sender.name_release(NAME)
    sender.signal(cookie=4)
    other.signal(cookie=5)
    assert [message.cookie for message in reader.drain()] == [2, 5]


# Notifications


@pytest.mark.parametrize("kind", [ItemType.ID_ADD, ItemType.ID_REMOVE])
def test_an_id_may_be_asked_for(world: World, reader: Client, kind: ItemType) -> None:
    next_id = reader.id + 2
    reader.add_match(id_rule(kind, next_id), cookie=1)
    reader.add_match(id_rule(kind, 0), cookie=2)
    clients = [world.connect() for _ in range(3)]
    for client in clients:
        client.close()
    assert [message.arrival for message in reader.drain()] == [(kind, next_id)]


def test_flags_of_a_rule_do_not_matter(world: World, reader: Client) -> None:
    reader.add_match(id_rule(ItemType.ID_ADD, ANY, 0xFFFF))
    client = world.connect()
    assert reader.recv().arrival == (ItemType.ID_ADD, client.id)


def test_nobody_hears_of_his_own_coming_and_going(world: World) -> None:
    client = world.connect()
    client.add_match()
    assert not client.is_readable


@pytest.mark.parametrize(
    ("wanted", "matches"), [(NAME, True), (None, True), ("foo.bar", False), ("foo.bar.bazz", False)]
)
@pytest.mark.parametrize("kind", ["NAME_ADD", "NAME_REMOVE", "NAME_CHANGE"])
def test_a_name_of_a_notification_may_be_asked_for(
    world: World, reader: Client, sender: Client, kind: str, wanted: str | None, matches: bool
) -> None:
    reader.add_match(name_rule(ItemType[kind], wanted))
    cause_everything(world, sender)
    assert heard(reader) == [kind] * matches


def test_old_and_new_owner_may_be_asked_for(world: World, reader: Client) -> None:
    first, second = world.connect(), world.connect()
    rules = {
        1: name_rule(ItemType.NAME_ADD, old=0, new=first.id),
        2: name_rule(ItemType.NAME_ADD, old=ANY, new=second.id),
        3: name_rule(ItemType.NAME_ADD, old=first.id, new=ANY),
        4: name_rule(ItemType.NAME_CHANGE, old=first.id, new=second.id),
        5: name_rule(ItemType.NAME_CHANGE, old=second.id, new=ANY),
        6: name_rule(ItemType.NAME_CHANGE, old=0, new=ANY),
        7: name_rule(ItemType.NAME_REMOVE, old=second.id, new=0),
        8: name_rule(ItemType.NAME_REMOVE, old=ANY, new=ANY),
        9: name_rule(ItemType.NAME_REMOVE, old=second.id, new=second.id),
    }
    expected = {1: 1, 2: 0, 3: 0, 4: 1, 5: 0, 6: 0, 7: 1, 8: 1, 9: 0}
    for cookie, rule in rules.items():
        reader.add_match(rule, cookie=cookie)
        first.name_acquire(NAME, Name.ALLOW_REPLACEMENT)
        second.name_acquire(NAME, Name.REPLACE_EXISTING)
        second.name_release(NAME)
        assert len(reader.drain()) == expected[cookie], rule
        reader.remove_match(cookie)


def test_nobody_is_not_anybody(world: World, reader: Client) -> None:
    """0 stands for no owner; only 2^64-1 stands for any."""
    reader.add_match(name_rule(ItemType.NAME_ADD, old=0, new=0), cookie=1)
    reader.add_match(name_rule(ItemType.NAME_REMOVE, old=0, new=0), cookie=2)
    client = world.connect()
    client.name_acquire(NAME)
    client.name_release(NAME)
    assert not reader.is_readable


def test_a_name_in_a_rule_for_notifications_need_not_be_one(reader: Client) -> None:
    for wanted in ("foo", "", ".", "foo.*"):
        reader.add_match(name_rule(ItemType.NAME_ADD, wanted))
    reader.name_acquire(NAME)
    assert not reader.is_readable


# Blooms


@pytest.mark.parametrize(
    ("mask", "filter", "matches"),
    [
        ({}, {}, True),
        ({}, {3: 0xFF}, True),
        ({3: 1}, {}, False),
        ({3: 1}, {3: 1}, True),
        ({3: 1}, {3: 3}, True),
        ({3: 3}, {3: 1}, False),
        ({3: 3}, {3: 2}, False),
        ({0: 1, 63: 128}, {0: 1, 63: 128}, True),
        ({0: 1, 63: 128}, {0: 1}, False),
        ({0: 1, 63: 128}, {63: 128}, False),
        (dict.fromkeys(range(64), 255), dict.fromkeys(range(64), 255), True),
        (dict.fromkeys(range(64), 255), dict.fromkeys(range(63), 255), False),
    ],
)
def test_a_filter_has_to_contain_the_mask(
    reader: Client, sender: Client, mask: dict[int, int], filter: dict[int, int], matches: bool
) -> None:
    reader.add_match(bloom_mask(bits(mask)))
    sender.signal(bits=bits(filter), cookie=1)
    assert [message.cookie for message in reader.drain()] == [1] * matches


@pytest.mark.parametrize(
    ("generation", "matches"), [(0, [0]), (1, [1]), (2, [2]), (3, [2]), (1000, [2]), (2**64 - 1, [2])]
)
def test_a_filter_meets_the_mask_of_its_generation_or_the_last(
    reader: Client, sender: Client, generation: int, matches: list[int]
) -> None:
    reader.add_match(bloom_mask(*(bits({place: 1}) for place in range(3))))
    for place in range(3):
        sender.signal(bits=bits({place: 1}), generation=generation, cookie=place)
    assert [message.cookie for message in reader.drain()] == matches


@pytest.mark.parametrize("size", [0, 8, 63, 65, 96, 127])
def test_a_mask_is_made_of_filters(reader: Client, size: int) -> None:
    with refused(EDOM):
        reader.add_match(bloom_mask(bytes(size)))
    with refused(EBADSLT):
        reader.remove_match(0)


# What is refused


@pytest.mark.parametrize("wrong", ["foo", "", ".a.b", "a..b", "a.1b", "a.b.*", ":1.1"])
def test_a_name_in_a_rule_for_messages_has_to_be_one(reader: Client, wrong: str) -> None:
    with refused(EINVAL):
        reader.add_match(name(wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        item(ID, bytes(4)),
        item(ID, bytes(16)),
        item(DST_ID),
        item(ItemType.ID_ADD, bytes(8)),
        item(ItemType.ID_REMOVE, bytes(24)),
        item(ItemType.NAME_ADD, bytes(24)),
        item(ItemType.NAME_CHANGE, bytes(32) + b"a.b"),
        item(ItemType.NAME_REMOVE, bytes(32) + b"a\0b\0"),
        item(ItemType.BLOOM_FILTER, bytes(72)),
        item(ItemType.DST_NAME, b"a.b\0"),
        item(ItemType.REPLY_DEAD),
    ],
)
def test_a_rule_that_is_none_is_refused(reader: Client, wrong: bytes) -> None:
    with refused(EINVAL):
        reader.add_match(number(ID, ANY), wrong)
    with refused(EBADSLT):
        reader.remove_match(0)


def test_a_refused_replacement_leaves_the_old_match(reader: Client, sender: Client) -> None:
    reader.add_match_empty()
    with refused(EDOM):
        reader.add_match(bloom_mask(bytes(8)), flags=MATCH_REPLACE)
    with refused(EINVAL):
        reader.add_match(flags=2)
    sender.signal(cookie=1)
    assert reader.recv().cookie == 1


def test_special_connections_have_no_matches(world: World) -> None:
    for special in (world.connect_monitor(), world.connect_activator("a.b"), world.connect_holder("a.c")):
        with refused(EOPNOTSUPP):
            special.add_match()
        with refused(EOPNOTSUPP):
            special.remove_match(0)


# Cookies


def test_all_matches_of_a_cookie_are_removed(reader: Client, sender: Client) -> None:
    for cookie in (5, 5, 6, 5):
        reader.add_match(number(ID, sender.id), cookie=cookie)
    reader.remove_match(5)
    with refused(EBADSLT):
        reader.remove_match(5)
    sender.signal(cookie=1)
    assert reader.recv().cookie == 1
    reader.remove_match(6)
    sender.signal(cookie=2)
    with refused(EAGAIN):
        reader.recv()


def test_cookies_are_ones_own(reader: Client, sender: Client) -> None:
    reader.add_match(cookie=5)
    with refused(EBADSLT):
        sender.remove_match(5)
    reader.remove_match(5)


@pytest.mark.parametrize("cookie", [0, 1, 2**63, 2**64 - 1])
def test_any_number_is_a_cookie(reader: Client, cookie: int) -> None:
    reader.add_match(cookie=cookie)
    reader.remove_match(cookie)


def test_all_matches_of_a_cookie_are_replaced(world: World, reader: Client, sender: Client) -> None:
    for rule in (number(ID, ANY), id_rule(ItemType.ID_ADD), name_rule(ItemType.NAME_ADD)):
        reader.add_match(rule, cookie=5)
    reader.add_match(name_rule(ItemType.NAME_CHANGE), cookie=6)
    reader.add_match(id_rule(ItemType.ID_REMOVE), cookie=5, flags=MATCH_REPLACE)
    cause_everything(world, sender)
    assert heard(reader) == ["NAME_CHANGE", "ID_REMOVE", "ID_REMOVE"]
    reader.remove_match(5)
    with refused(EBADSLT):
        reader.remove_match(5)


def test_there_need_be_nothing_to_replace(reader: Client, sender: Client) -> None:
    reader.add_match(number(ID, ANY), cookie=5, flags=MATCH_REPLACE)
    sender.signal(cookie=1)
    assert reader.recv().cookie == 1


# How many


def test_a_connection_has_4096_matches(reader: Client, sender: Client) -> None:
    for cookie in range(4096):
        reader.add_match(number(ID, sender.id), cookie=cookie % 4000)
    with refused(EMFILE):
        reader.add_match(cookie=9999)
    with refused(EMFILE):
        reader.add_match(cookie=9999, flags=MATCH_REPLACE)  # there is nothing to replace
    reader.add_match(number(ID, ANY), cookie=5, flags=MATCH_REPLACE)  # two by one
    reader.add_match(cookie=9999)
    with refused(EMFILE):
        reader.add_match(cookie=9999)
    reader.remove_match(7)
    reader.add_match(cookie=9999)
    reader.add_match(cookie=9998)
    with refused(EMFILE):
        reader.add_match(cookie=9998)
    sender.signal(cookie=1)
    assert [message.cookie for message in reader.drain()] == [1]
    sender.add_match(cookie=1)  # another's do not count


def test_rules_do_not_count(reader: Client) -> None:
    for cookie in range(40):
        reader.add_match(*[number(ID, ANY)] * 200, cookie=cookie)
