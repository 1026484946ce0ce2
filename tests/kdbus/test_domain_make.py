"""DOMAIN_MAKE: named domains in a domain, as kdbus' first version had them, made by the privileged."""

from __future__ import annotations

from errno import EACCES, EBADFD, EEXIST, EINVAL, EPERM, ESHUTDOWN

import pytest
from support.kdbus import Client, Make, Task, World, layout, refused

NAME = "container"


@pytest.fixture
def root(world: World) -> Task:
    return world.task(0, privileged=True)


@pytest.fixture
def control(world: World, root: Task) -> Client:
    return world.open_control(root)


def test_a_domain_has_a_control_node_and_buses_of_its_own(world: World, root: Task, control: Client) -> None:
    control.domain_make(NAME, Make.ACCESS_WORLD)
    domain = world.domain.domains[NAME]
    assert (domain.name, domain.buses) == (NAME, {})
    maker = world.open(domain)
    maker.bus_make(name="1000-test", flags=Make.ACCESS_WORLD)  # the name that the outer bus has
    client = world.connect(node=domain.buses["1000-test"].endpoint)
    assert client.creator_info(0).id == 1
    assert client.id == 2
    assert client.list_ids() == [client.id]


def test_a_handle_makes_one_domain(control: Client) -> None:
    control.domain_make(NAME)
    with refused(EBADFD):
        control.domain_make(NAME + "2")
    with refused(EBADFD):
        control.bus_make(name="0-bus")


def test_a_name_is_taken_once_and_the_loser_may_try_another(
    world: World, root: Task, control: Client
) -> None:
    control.domain_make(NAME)
    second = world.open_control(root)
    with refused(EEXIST):
        second.domain_make(NAME)
    second.domain_make(NAME + "2")
    assert set(world.domain.domains) == {NAME, NAME + "2"}


def test_a_domain_ends_with_its_handle(world: World, root: Task, control: Client) -> None:
    control.domain_make(NAME, Make.ACCESS_WORLD)
    domain = world.domain.domains[NAME]
    early = world.open(domain)
    world.open(domain).bus_make(name="1000-test")
    client = world.connect(node=domain.buses["1000-test"].endpoint)
    inner = world.open(domain, root)
    inner.domain_make("inner")
    control.close()
    assert world.domain.domains == {}
    assert (domain.domains, domain.buses) == ({}, {})
    with refused(ESHUTDOWN):
        world.open(domain)
    with refused(ESHUTDOWN):
        early.bus_make(name="1000-late")
    with refused(ESHUTDOWN):
        client.list_records()
    world.open_control(root).domain_make(NAME)


@pytest.mark.parametrize("uid", [1000, 0])
def test_only_the_privileged_make_domains(world: World, uid: int) -> None:
    control = world.open_control(world.task(uid))
    with refused(EPERM):
        control.domain_make(NAME)
    with refused(EPERM):  # told before anything is read
        control.ioctl(layout.DOMAIN_MAKE.request, 8)
    control.bus_make(name=f"{uid}-own")  # the handle can still be used


@pytest.mark.parametrize("name", ["-a", "a-", ".", "a/b", "a b", "ä"])
def test_a_domain_has_the_name_of_a_node(control: Client, name: str) -> None:
    with refused(EINVAL):
        control.domain_make(name)


def test_the_control_node_has_an_owner_and_a_mode(world: World, root: Task, control: Client) -> None:
    control.domain_make(NAME)
    domain = world.domain.domains[NAME]
    with refused(EACCES):
        world.open(domain)
    world.open(domain, root)


def test_what_is_said_in_one_domain_is_not_heard_in_another(
    world: World, root: Task, control: Client
) -> None:
    control.domain_make(NAME, Make.ACCESS_WORLD)
    domain = world.domain.domains[NAME]
    world.open(domain).bus_make(name="1000-test", flags=Make.ACCESS_WORLD)
    inside, outside = world.connect(node=domain.buses["1000-test"].endpoint), world.connect()
    for client in (inside, outside):
        client.add_match_empty()
    inside.broadcast(1)
    outside.broadcast(2)
    assert [message.cookie for message in inside.drain()] == [1]
    assert [message.cookie for message in outside.drain()] == [2]
