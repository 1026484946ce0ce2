"""The methods of org.freedesktop.DBus, as far as a native bus has commands for them."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from unit.native.native_programs import Connect, Served, refusal

from busproxy.native import NativeBus
from kdbus_core import Snapshot
from kdbus_core.abi import HelloFlag
from kdbus_core.metadata import Creds, Pids
from kdbus_core.transport.client.aio import open_node

DRIVER = "org.freedesktop.DBus"
NAME = "org.example.Service"


async def ask(bus: NativeBus, member: str, signature: str = "", *values: Any) -> Any:
    return await bus.call(DRIVER, "/org/freedesktop/DBus", DRIVER, member, signature, *values)


async def test_a_name_is_acquired_queued_for_replaced_and_released(join: Connect) -> None:
    one, other = await join(), await join()
    assert await ask(one, "RequestName", "su", NAME, 1) == (1,)
    assert await ask(one, "RequestName", "su", NAME, 1) == (4,)
    assert await ask(other, "RequestName", "su", NAME, 4) == (3,)
    assert await ask(other, "RequestName", "su", NAME, 0) == (2,)
    assert await ask(one, "ListQueuedOwners", "s", NAME) == ([one.unique_name, other.unique_name],)
    assert await ask(other, "RequestName", "su", NAME, 2) == (1,)
    assert await ask(one, "GetNameOwner", "s", NAME) == (other.unique_name,)
    assert await ask(other, "ReleaseName", "s", NAME) == (1,)
    assert await ask(other, "ReleaseName", "s", NAME) == (3,)
    assert await ask(one, "ReleaseName", "s", NAME) == (1,)
    assert await ask(one, "ReleaseName", "s", NAME) == (2,)


@pytest.mark.parametrize("name", ["org", "", ":1.1", DRIVER, "org.ä"])
async def test_what_cannot_be_owned_is_refused(join: Connect, name: str) -> None:
    program = await join()
    assert (await refusal(program.request_name(name)))[0] == "InvalidArgs"
    assert (await refusal(program.release_name(name)))[0] == "InvalidArgs"


async def test_names_are_listed(join: Connect) -> None:
    one, other = await join(), await join()
    await one.request_name(NAME)
    await other.request_name(NAME)
    (names,) = await ask(other, "ListNames")
    assert names == [DRIVER, one.unique_name, other.unique_name, NAME]


async def test_who_has_a_name_is_told(join: Connect) -> None:
    one = await join()
    await one.request_name(NAME)
    for name in (NAME, one.unique_name):
        assert await ask(one, "GetNameOwner", "s", name) == (one.unique_name,)
        assert await ask(one, "NameHasOwner", "s", name) == (True,)
    assert await ask(one, "GetNameOwner", "s", DRIVER) == (DRIVER,)
    for name in ("org.example.Other", ":1.4711", ":2.1", "junk"):
        assert await ask(one, "NameHasOwner", "s", name) == (False,)
        assert (await refusal(ask(one, "GetNameOwner", "s", name)))[0] == "NameHasNoOwner"


async def test_credentials_are_those_of_the_program(join: Connect) -> None:
    one = await join()
    (credentials,) = await ask(one, "GetConnectionCredentials", "s", one.unique_name)
    assert credentials["UnixUserID"] == ("u", os.geteuid())
    assert credentials["ProcessID"] == ("u", os.getpid())
    assert os.getegid() in credentials["UnixGroupIDs"][1]
    assert await ask(one, "GetConnectionUnixUser", "s", one.unique_name) == (os.geteuid(),)
    assert await ask(one, "GetConnectionUnixProcessID", "s", one.unique_name) == (os.getpid(),)


async def test_credentials_that_are_not_known_are_left_out(served: Served, join: Connect) -> None:
    one = await join()
    handle = await open_node(served.node)
    faked = Snapshot(creds=Creds(egid=77), pids=Pids(4711))
    async with await handle.hello(faked=faked) as spoken_for:
        name = f":1.{spoken_for.id}"
        assert await ask(one, "GetConnectionCredentials", "s", name) == ({"ProcessID": ("u", 4711)},)
        assert (await refusal(ask(one, "GetConnectionUnixUser", "s", name)))[0] == "Failed"
        label = await refusal(ask(one, "GetConnectionSELinuxSecurityContext", "s", name))
        assert label[0] == "SELinuxSecurityContextUnknown"


async def test_the_bus_has_an_id(served: Served, join: Connect) -> None:
    assert await ask(await join(), "GetId") == (served.bus.id128.hex(),)


async def test_what_can_be_activated_is_listed_and_started(served: Served, join: Connect) -> None:
    client = await join()
    handle = await open_node(served.node)
    async with await handle.hello(flags=HelloFlag.ACTIVATOR, name=NAME) as activator:
        assert await ask(client, "ListActivatableNames") == ([DRIVER, NAME],)
        assert await ask(client, "NameHasOwner", "s", NAME) == (False,)
        assert NAME not in (await ask(client, "ListNames"))[0]
        starting = asyncio.create_task(ask(client, "StartServiceByName", "su", NAME, 0))
        await activator.wait()
        service = await join()
        await service.request_name(NAME)
        assert await starting == (1,)
        assert await ask(client, "StartServiceByName", "su", NAME, 0) == (2,)


async def test_what_nobody_activates_is_not_started(join: Connect) -> None:
    program = await join()
    refused = await refusal(ask(program, "StartServiceByName", "su", NAME, 0))
    assert refused[0] == "ServiceUnknown"
    assert await ask(program, "StartServiceByName", "su", DRIVER, 0) == (2,)


async def test_the_driver_answers_pings(join: Connect) -> None:
    program = await join()
    assert await program.call(DRIVER, "/", "org.freedesktop.DBus.Peer", "Ping") == ()


@pytest.mark.parametrize(
    ("interface", "member", "signature", "values", "name"),
    [
        (DRIVER, "Explode", "", (), "UnknownMethod"),
        ("org.example.I", "GetId", "", (), "UnknownInterface"),
        (DRIVER, "GetNameOwner", "u", (1,), "InvalidArgs"),
        (DRIVER, "AddMatch", "s", ("",), "NotSupported"),
    ],
)
async def test_what_the_driver_does_not_do_is_refused(
    join: Connect, interface: str, member: str, signature: str, values: tuple[Any, ...], name: str
) -> None:
    program = await join()
    refused = await refusal(program.call(DRIVER, "/", interface, member, signature, *values))
    assert refused[0] == name
