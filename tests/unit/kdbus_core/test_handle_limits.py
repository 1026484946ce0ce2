"""The limits that a domain is made with hold for everybody who connects through a handle."""

from __future__ import annotations

from errno import E2BIG, EMFILE, EMLINK, ENOBUFS

import pytest
from caller_world import OpenFile
from handle_world import (
    OWNER,
    POOL_SIZE,
    ROOT,
    STRANGER,
    Client,
    build_message,
    fds_item,
    name_item,
    refused,
    vec_item,
)

from kdbus_core.abi import Command, MakeFlag, MessageFlag
from kdbus_core.connection import Limits
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.handle import Handle
from kdbus_core.metadata import Process

NOW = 1_000_000


def endpoint_of(domain: Domain) -> Endpoint:
    return domain.make_bus("1000-bus", OWNER, MakeFlag.ACCESS_WORLD).endpoint


def make_endpoint(*, max_connections_per_user: int = 1024, limits: Limits = Limits()) -> Endpoint:  # noqa: B008
    """The endpoint of a bus in a domain with these limits."""
    return endpoint_of(
        Domain(
            bytes,
            lambda: NOW,
            lambda: NOW,
            max_connections_per_user=max_connections_per_user,
            limits=limits,
        )
    )


def connect(endpoint: Endpoint, process: Process = OWNER, pool_size: int = POOL_SIZE) -> Client:
    client = Client(Handle(endpoint, process))
    client.hello(pool_size=pool_size)
    return client


def test_a_domain_says_how_many_connections_a_user_has() -> None:
    endpoint = make_endpoint(max_connections_per_user=2)
    connect(endpoint)
    connect(endpoint)
    with refused(EMFILE):
        connect(endpoint)
    connect(endpoint, STRANGER)


def test_there_may_be_more_connections_of_a_user_than_in_kdbus() -> None:
    endpoint = make_endpoint(max_connections_per_user=1030)
    for _ in range(1030):
        connect(endpoint, pool_size=4096)
    with refused(EMFILE):
        connect(endpoint)


def test_a_domain_says_how_many_names_a_connection_has() -> None:
    client = connect(make_endpoint(limits=Limits(names=1)))
    client.run(Command.NAME_ACQUIRE, items=[name_item("com.example.a")])
    with refused(E2BIG):
        client.run(Command.NAME_ACQUIRE, items=[name_item("com.example.b")])


def test_a_domain_says_how_many_matches_a_connection_has() -> None:
    client = connect(make_endpoint(limits=Limits(matches=2)))
    client.run(Command.MATCH_ADD, 1)
    client.run(Command.MATCH_ADD, 2)
    with refused(EMFILE):
        client.run(Command.MATCH_ADD, 3)


def test_a_domain_says_how_many_requests_a_connection_has_open() -> None:
    endpoint = make_endpoint(limits=Limits(outstanding_requests=1))
    caller, callee = connect(endpoint), connect(endpoint)

    def call(cookie: int) -> None:
        flags = MessageFlag.EXPECT_REPLY
        caller.send(
            build_message(flags=flags, dst_id=callee.id, cookie=cookie, timeout_or_reply=NOW + 1_000_000)
        )

    call(1)
    with refused(EMLINK):
        call(2)


def test_a_domain_says_how_many_messages_of_a_user_wait_at_a_connection() -> None:
    endpoint = make_endpoint(limits=Limits(queued_messages=2))
    sender, receiver = connect(endpoint), connect(endpoint)
    for cookie in (1, 2):
        sender.send(build_message(dst_id=receiver.id, cookie=cookie, items=[vec_item(8)]))
    with refused(ENOBUFS):
        sender.send(build_message(dst_id=receiver.id, cookie=3, items=[vec_item(8)]))


def test_a_domain_says_how_many_descriptors_of_a_user_wait_at_a_connection() -> None:
    endpoint = make_endpoint(limits=Limits(in_flight_fds=1))
    sender, receiver = connect(endpoint), connect(endpoint)
    fd = sender.thread.open(OpenFile())
    sender.send(build_message(dst_id=receiver.id, cookie=1, items=[fds_item(fd)]))
    with refused(EMFILE):
        sender.send(build_message(dst_id=receiver.id, cookie=2, items=[fds_item(fd)]))


@pytest.mark.parametrize("depth", [1, 2])
def test_a_domain_in_a_domain_has_the_same_limits(depth: int) -> None:
    limits = Limits(names=3)
    domain = Domain(bytes, max_pool_size=8192, max_connections_per_user=1, limits=limits)
    for _ in range(depth):
        domain = domain.make_domain("inner", ROOT)
    assert (domain.max_pool_size, domain.limits) == (8192, limits)
    endpoint = endpoint_of(domain)
    connect(endpoint, pool_size=4096)
    with refused(EMFILE):
        connect(endpoint, pool_size=4096)
