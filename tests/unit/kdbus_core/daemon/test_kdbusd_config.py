"""kdbusd's configuration: what a file means, and which key of a wrong one is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from kdbus_core import Bloom, Credentials
from kdbus_core.abi import MAX_POOL_SIZE, AccessLevel, AccessType, AttachFlag, MakeFlag
from kdbus_core.daemon.config import (
    Accounts,
    BusConfig,
    Config,
    ConfigError,
    LimitsConfig,
    load_config,
    parse_config,
)
from kdbus_core.policy import Access, PolicyEntry

USERS = {"root": 0, "ann": 1001}
GROUPS = {"root": 0, "wheel": 10, "all": (1 << 32) - 1}
ACCOUNTS = Accounts(USERS.__getitem__, GROUPS.__getitem__)
OWNER = Credentials(uid=1000, gid=100)
WORLD = MakeFlag.ACCESS_GROUP | MakeFlag.ACCESS_WORLD
REPOSITORY = Path(__file__).resolve().parents[4]


def parse(text: str) -> Config:
    return parse_config(text, "conf", OWNER, ACCOUNTS)


def bus_of(text: str) -> BusConfig:
    """What one bus is, named and opened with these lines."""
    (bus,) = parse(f'[[bus]]\nname = "1000-x"\n{text}').buses
    return bus


def refusal(text: str) -> tuple[str, str]:
    """Key and reason of the error that a text is refused with."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.file == "conf"
    assert str(caught.value).startswith("conf: ")
    return caught.value.key, caught.value.why


# What a file means


def test_an_empty_file_asks_for_nothing() -> None:
    assert parse("") == Config("conf", WORLD, LimitsConfig(MAX_POOL_SIZE), ())


def test_a_bus_has_defaults_for_everything_but_its_name() -> None:
    assert bus_of("") == BusConfig(
        "1000-x", 1000, 100, MakeFlag(0), Bloom(64, 8), AttachFlag(0), AttachFlag(0), (), ()
    )


def test_everything_about_a_bus_can_be_said() -> None:
    bus = bus_of(
        """
        access = "world"
        final_metadata = true
        bloom = { size = 128, hashes = 4 }
        creator_metadata = ["creds", "pid_comm"]
        required_metadata = ["timestamp"]
        """
    )
    assert bus.access == WORLD | MakeFlag.FINAL_METADATA
    assert bus.bloom == Bloom(128, 4)
    assert bus.creator_metadata == AttachFlag.CREDS | AttachFlag.PID_COMM
    assert bus.required_metadata == AttachFlag.TIMESTAMP


def test_a_name_may_leave_the_uid_to_the_daemon() -> None:
    config = parse('[[bus]]\nname = "{uid}-system"\n[[bus.endpoint]]\nname = "{uid}-e"')
    assert config.buses[0].name == "1000-system"
    assert config.buses[0].endpoints[0].name == "1000-e"


def test_a_bus_may_be_somebody_elses() -> None:
    (bus,) = parse('[[bus]]\nname = "{uid}-hers"\nowner = { user = "ann", group = 5 }').buses
    assert (bus.name, bus.uid, bus.gid) == ("1001-hers", 1001, 5)


def test_policy_says_for_each_level_whom_it_is_for() -> None:
    bus = bus_of(
        """
        [[bus.policy]]
        name = "org.example.*"
        own = ["user:root", "user:7"]
        talk = ["group:wheel", "group:8"]
        see = ["world"]
        """
    )
    assert bus.policy == (
        PolicyEntry(
            "org.example.*",
            (
                Access(AccessType.WORLD, 0, AccessLevel.SEE),
                Access(AccessType.GROUP, 10, AccessLevel.TALK),
                Access(AccessType.GROUP, 8, AccessLevel.TALK),
                Access(AccessType.USER, 0, AccessLevel.OWN),
                Access(AccessType.USER, 7, AccessLevel.OWN),
            ),
        ),
    )


def test_an_endpoint_has_access_and_policy_of_its_own() -> None:
    (endpoint,) = bus_of(
        """
        [[bus.endpoint]]
        name = "1000-narrow"
        access = "group"
        [[bus.endpoint.policy]]
        name = "org.example.A"
        talk = ["world"]
        """
    ).endpoints
    assert (endpoint.name, endpoint.access) == ("1000-narrow", MakeFlag.ACCESS_GROUP)
    assert [entry.name for entry in endpoint.policy] == ["org.example.A"]


def test_the_domain_has_access_and_limits() -> None:
    names = [limit.name for limit in fields(LimitsConfig)]
    values = [8192, *range(2, 1 + len(names))]
    limits = "\n".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
    config = parse(f'access = "owner"\n[limits]\n{limits}')
    assert (config.access, config.limits) == (MakeFlag(0), LimitsConfig(*values))


def test_where_something_stands_does_not_make_it_another_thing() -> None:
    one = bus_of('[[bus.endpoint]]\nname = "1000-a"')
    (_, other) = parse(
        '[[bus]]\nname = "1000-y"\n[[bus]]\nname = "1000-x"\n[[bus.endpoint]]\nname = "1000-a"'
    ).buses
    assert one == other


# What is wrong


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("acess = 'world'", "acess", "is not known; did you mean access?"),
        ("zzz = 1", "zzz", "is not known; known here: access, limits, bus"),
        ("access = 'all'", "access", '"all" is none of owner, group, world'),
        ("access = 1", "access", "has to be a string, not an integer"),
        ("access = true", "access", "has to be a string, not true or false"),
        ("access = 1.5", "access", "has to be a string, not a number with a point"),
        ("access = 2020-01-01", "access", "has to be a string, not a date or time"),
        ("bus = 1", "bus", "has to be a list, not an integer"),
        ("bus = [1]", "bus[0]", "has to be a table, not an integer"),
        ("limits = []", "limits", "has to be a table, not a list"),
        ("[limits]\nmax_pool_size = true", "limits.max_pool_size", "has to be an integer, not true or false"),
        ("[limits]\nmax_pool_size = 4097", "limits.max_pool_size", "has to be a multiple of 4096 (bytes)"),
        ("[limits]\nmax_pool_size = 0", "limits.max_pool_size", "has to be at least 1"),
        ("[limits]\nhandles = -1", "limits.handles", "has to be at least 1"),
        ("[limits]\nfiles = 1", "limits.files", None),
        ("[[bus]]", "bus[0].name", "is missing"),
        ('[[bus]]\nname = ""', "bus[0].name", None),
        ('[[bus]]\nname = "system"', "bus[0].name", None),
        ('[[bus]]\nname = "0-system"', "bus[0].name", None),
        ('[[bus]]\nname = "{uid}-a/b"', "bus[0].name", None),
        (
            '[[bus]]\nname = "1000-a"\n[[bus]]\nname = "{uid}-a"',
            "bus[1].name",
            'bus[0] is bus "1000-a" already',
        ),
    ],
)
def test_a_wrong_key_is_named_with_the_reason(text: str, key: str, why: str | None) -> None:
    found, reason = refusal(text)
    assert found == key
    assert why is None or reason == why


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("owner = { user = 'nobody-here' }", "owner.user", 'there is no "nobody-here" on this machine'),
        ("owner = { user = 'a\\u0000b' }".replace("'", '"'), "owner.user", None),
        ("owner = { user = 4294967295 }", "owner.user", "4294967295 is no id"),
        ("owner = { user = -1 }", "owner.user", 'there is no "-1" on this machine'),
        ("owner = { user = true }", "owner.user", "has to be a name or a number, not true or false"),
        ("owner = { group = 'all' }", "owner.group", "4294967295 is no id"),
        ("owner = { uid = 1 }", "owner.uid", None),
        ("bloom = { size = 12 }", "bloom.size", "has to be a multiple of 8 from 8 to 4096"),
        ("bloom = { size = 8192 }", "bloom.size", "has to be a multiple of 8 from 8 to 4096"),
        ("bloom = { hashes = 0 }", "bloom.hashes", None),
        ("bloom = { size = 8, hashes = 65 }", "bloom.hashes", None),
        ("required_metadata = ['names', 'nonsense']", "required_metadata[1]", None),
        ("creator_metadata = [1]", "creator_metadata[0]", "has to be a string, not an integer"),
        ("policy = [{ own = ['world'] }]", "policy[0].name", "is missing"),
        ("policy = [{ name = 'nodots' }]", "policy[0].name", None),
        (
            "policy = [{ name = 'a.b' }, { name = 'a.b' }]",
            "policy[1].name",
            "there is an entry for 'a.b' already",
        ),
        (
            "policy = [{ name = 'a.b', own = ['user:root', 'all'] }]",
            "policy[0].own[1]",
            '"all" is none of world, user:NAME, user:UID, group:NAME, group:GID',
        ),
        (
            "policy = [{ name = 'a.b', talk = ['user:bob'] }]",
            "policy[0].talk[0]",
            'there is no "bob" on this machine',
        ),
        ("policy = [{ name = 'a.b', see = 'world' }]", "policy[0].see", "has to be a list, not a string"),
        ("policy = [{ name = 'a.b', owns = [] }]", "policy[0].owns", "is not known; did you mean own?"),
        ("endpoint = [{ name = 'e' }]", "endpoint[0].name", None),
        ("endpoint = [{ name = '{uid}-e', x = 1 }]", "endpoint[0].x", None),
        (
            "endpoint = [{ name = '1000-e' }, { name = '1000-e' }]",
            "endpoint[1].name",
            'bus[0].endpoint[0] is endpoint "1000-e" already',
        ),
    ],
)
def test_a_wrong_key_of_a_bus_is_named_with_the_reason(text: str, key: str, why: str | None) -> None:
    found, reason = refusal(f'[[bus]]\nname = "1000-x"\n{text}')
    assert found == f"bus[0].{key}"
    assert why is None or reason == why


def test_what_is_not_toml_is_refused_with_its_place() -> None:
    key, why = refusal("access = world")
    assert key == ""
    assert why.startswith("not TOML: ")
    assert "line 1" in why


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kdbusd\.toml: cannot be read: No such file"):
        load_config(tmp_path / "kdbusd.toml", OWNER, ACCOUNTS)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "kdbusd.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read: not UTF-8"):
        load_config(file, OWNER, ACCOUNTS)


# The file that is delivered


def test_the_delivered_file_can_be_read_and_asks_for_one_open_bus() -> None:
    (bus,) = load_config(REPOSITORY / "conf" / "kdbusd.toml", OWNER, ACCOUNTS).buses
    assert (bus.name, bus.access) == ("1000-system", WORLD)


def test_what_the_delivered_file_has_commented_out_can_be_read_too() -> None:
    lines = (REPOSITORY / "conf" / "kdbusd.toml").read_text().splitlines()
    examples = [line.removeprefix("#") for line in lines if not line.startswith("# ") and line != "#"]
    config = parse("\n".join(examples))
    (bus,) = config.buses
    assert bus.policy
    assert bus.endpoints[0].policy
    # What it says of limits is what holds without it, where the machine allows that.
    assert config.limits == LimitsConfig(handles=65536, handles_per_user=1088, open_files_per_user=16384)
