"""Calls between native programs: what is asked, what is answered, and how a call ends otherwise."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from unit.native.native_programs import Connect, Served, refusal

from busproxy.native import DBusError, Descriptor, NativeBus, current_call
from kdbus_core.abi import HelloFlag
from kdbus_core.transport.client.aio import open_node

PATH = "/org/example/Test"
INTERFACE = "org.example.Test"
NAME = "org.example.Service"


async def make_pair(join: Connect, **methods: tuple[str, str, Any]) -> tuple[NativeBus, NativeBus]:
    """A service that exports these methods and owns NAME, and its client."""
    service, client = await join(), await join()
    service.export(PATH, INTERFACE, methods)
    assert await service.request_name(NAME) == 1
    return service, client


async def call(client: NativeBus, member: str, signature: str = "", *values: Any, **options: Any) -> Any:
    return await client.call(NAME, PATH, INTERFACE, member, signature, *values, **options)


async def test_a_call_is_answered_with_what_the_handler_returns(join: Connect) -> None:
    _, client = await make_pair(join, Echo=("s", "s", lambda text: text + "!"))
    assert await call(client, "Echo", "s", "hello") == ("hello!",)


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("", ()),
        ("ybnqiuxtdsog", (1, True, -2, 3, -4, 5, -6, 7, 0.5, "ä", "/a", "a{sv}")),
        ("a{sv}", ({"a": ("i", 1), "b": ("as", ["x", ""]), "c": ("v", ("s", "y"))},)),
        ("(ia(sd))av", ((1, [("x", 0.25)]), [("s", "z"), ("ay", b"\0\1")])),
        ("ayas", (b"", [])),
    ],
)
async def test_values_of_every_type_arrive_as_they_were_sent(
    join: Connect, signature: str, values: tuple[Any, ...]
) -> None:
    def echo(*arguments: Any) -> Any:
        return arguments[0] if len(arguments) == 1 else arguments

    _, client = await make_pair(join, Echo=(signature, signature, echo))
    assert await call(client, "Echo", signature, *values) == values


async def test_megabytes_arrive_as_they_were_sent(join: Connect) -> None:
    _, client = await make_pair(join, Echo=("ay", "ay", lambda data: data))
    data = os.urandom(3 << 20)
    assert await call(client, "Echo", "ay", data) == (data,)


async def test_a_handler_that_waits_does_not_keep_others_waiting(join: Connect) -> None:
    go_on = asyncio.Event()

    async def wait() -> str:
        await go_on.wait()
        return "waited"

    _, client = await make_pair(join, Wait=("", "s", wait), Go=("", "", go_on.set))
    waiting = asyncio.create_task(call(client, "Wait"))
    assert await call(client, "Go") == ()
    assert await waiting == ("waited",)


async def test_many_calls_at_once_get_each_their_own_answer(join: Connect) -> None:
    _, client = await make_pair(join, Echo=("u", "u", lambda number: number))
    answers = await asyncio.gather(*(call(client, "Echo", "u", number) for number in range(100)))
    assert answers == [(number,) for number in range(100)]


async def test_a_unique_name_is_an_address_and_so_is_ones_own(join: Connect) -> None:
    service, client = await make_pair(join, Who=("", "s", lambda: current_call().sender))
    for caller in (client, service):
        answer = await caller.call(service.unique_name, PATH, INTERFACE, "Who")
        assert answer == (caller.unique_name,)


async def test_a_handler_sees_the_flags_of_the_call(join: Connect) -> None:
    _, client = await make_pair(join, Flags=("", "y", lambda: current_call().flags))
    assert await call(client, "Flags", flags=4) == (4,)
    assert await call(client, "Flags", flags=2) == (2,)


async def test_a_call_that_wants_no_reply_is_carried_out_and_gets_none(join: Connect) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()

    async def say(text: str) -> str:
        await said.put(text)
        return text

    _, client = await make_pair(join, Say=("s", "s", say))
    assert await call(client, "Say", "s", "once", flags=1) == ()
    assert await said.get() == "once"
    assert await call(client, "Say", "s", "twice") == ("twice",)


async def test_a_signal_sent_before_a_reply_is_seen_before_it(join: Connect) -> None:
    seen: list[str] = []
    service = await join()

    async def act() -> None:
        await service.emit(PATH, INTERFACE, "Acting")

    service.export(PATH, INTERFACE, {"Act": ("", "", act)})
    client = await join()
    await client.add_match(f"interface='{INTERFACE}'", lambda message: seen.append(message.member or ""))
    for _ in range(20):
        await client.call(service.unique_name, PATH, INTERFACE, "Act")
        seen.append("reply")
    assert seen == ["Acting", "reply"] * 20


# Errors


def fail_with(error: Exception) -> Any:
    def fail() -> None:
        raise error

    return fail


async def test_an_error_that_is_raised_is_the_reply(join: Connect) -> None:
    _, client = await make_pair(
        join, Fail=("", "", fail_with(DBusError("org.example.Error.Odd", "as it is")))
    )
    assert await refusal(call(client, "Fail")) == ("org.example.Error.Odd", "as it is")


async def test_an_error_of_a_handler_that_waits_is_the_reply(join: Connect) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise DBusError("org.example.Error.Odd")

    _, client = await make_pair(join, Fail=("", "", fail))
    assert await refusal(call(client, "Fail")) == ("org.example.Error.Odd", "")


async def test_another_exception_is_a_failure_and_is_logged(
    join: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    _, client = await make_pair(join, Fail=("", "", fail_with(ZeroDivisionError("of what"))))
    assert await refusal(call(client, "Fail")) == ("Failed", "ZeroDivisionError: of what")
    assert "Fail of /org/example/Test has failed" in caplog.text


async def test_a_result_that_is_not_of_its_type_is_a_failure(join: Connect) -> None:
    _, client = await make_pair(join, Number=("", "u", lambda: "one"))
    name, text = await refusal(call(client, "Number"))
    assert (name, "TypeError" in text) == ("Failed", True)


async def test_an_error_that_has_no_valid_name_is_a_failure(join: Connect) -> None:
    _, client = await make_pair(join, Fail=("", "", fail_with(DBusError("odd"))))
    assert (await refusal(call(client, "Fail")))[0] == "Failed"


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "name"),
    [
        ("/nowhere", INTERFACE, "Echo", "s", "UnknownObject"),
        ("/nowhere", None, "Echo", "s", "UnknownObject"),
        (PATH, "org.example.Other", "Echo", "s", "UnknownInterface"),
        (PATH, INTERFACE, "Other", "s", "UnknownMethod"),
        (PATH, None, "Other", "s", "UnknownMethod"),
        (PATH, INTERFACE, "Echo", "o", "InvalidArgs"),
        ("/org", INTERFACE, "Echo", "s", "UnknownInterface"),
        ("/", "org.freedesktop.DBus.Peer", "Pong", "s", "UnknownMethod"),
    ],
)
async def test_what_is_not_there_is_refused_in_the_specifications_words(
    join: Connect, path: str, interface: str | None, member: str, signature: str, name: str
) -> None:
    _, client = await make_pair(join, Echo=("s", "s", lambda text: text))
    refused = await refusal(client.call(NAME, path, interface, member, signature, "/a"))
    assert refused[0] == name


async def test_a_call_without_interface_finds_the_method(join: Connect) -> None:
    _, client = await make_pair(join, Echo=("s", "s", lambda text: text))
    assert await client.call(NAME, PATH, None, "Echo", "s", "x") == ("x",)


async def test_a_name_that_nobody_has_is_unknown(join: Connect) -> None:
    client = await join()
    assert await refusal(call(client, "Echo")) == (
        "ServiceUnknown",
        f"The name {NAME} was not provided by any .service files",
    )
    assert await refusal(call(client, "Echo", flags=2)) == (
        "NameHasNoOwner",
        f'Name "{NAME}" does not exist',
    )


@pytest.mark.parametrize("name", [":1.4711", ":1.0", ":2.1", ":1.18446744073709551615"])
async def test_a_unique_name_that_nobody_has_is_unknown(join: Connect, name: str) -> None:
    client = await join()
    assert (await refusal(client.call(name, PATH, INTERFACE, "Echo")))[0] == "ServiceUnknown"
    assert (await refusal(client.call(name, PATH, INTERFACE, "Echo", flags=1)))[0] == "ServiceUnknown"


async def test_a_call_that_nobody_answers_in_time_ends_without_a_reply(join: Connect) -> None:
    _, client = await make_pair(join, Wait=("", "", asyncio.Event().wait))
    assert (await refusal(call(client, "Wait", timeout=0.01)))[0] == "NoReply"


async def test_a_call_whose_callee_goes_ends_without_a_reply(join: Connect) -> None:
    service, client = await make_pair(join, Leave=("", "", lambda: None))
    arrived = asyncio.Event()

    async def wait() -> None:
        arrived.set()
        await asyncio.Event().wait()

    service.export(PATH, "org.example.Wait", {"Wait": ("", "", wait)})
    waiting = asyncio.create_task(client.call(NAME, PATH, "org.example.Wait", "Wait", timeout=None))
    await arrived.wait()
    await service.close()
    assert await refusal(waiting) == (
        "NoReply",
        "Message recipient disconnected from message bus without replying",
    )


async def test_a_call_that_is_given_up_leaves_the_connection_usable(join: Connect) -> None:
    go_on = asyncio.Event()

    async def wait() -> None:
        await go_on.wait()

    _, client = await make_pair(join, Wait=("", "", wait), Echo=("s", "s", lambda text: text))
    waiting = asyncio.create_task(call(client, "Wait"))
    assert await call(client, "Echo", "s", "x") == ("x",)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()  # its reply comes now, and is for nobody
    assert await call(client, "Echo", "s", "y") == ("y",)


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "values"),
    [
        ("no path", INTERFACE, "M", "", ()),
        (PATH, "interface", "M", "", ()),
        (PATH, INTERFACE, "no.member", "", ()),
        (PATH, INTERFACE, "M", "s", ()),
        (PATH, INTERFACE, "M", "q", (70000,)),
        (PATH, INTERFACE, "M", "z", (1,)),
    ],
)
async def test_what_cannot_be_said_in_dbus_is_not_sent(
    join: Connect, path: str, interface: str, member: str, signature: str, values: tuple[Any, ...]
) -> None:
    client = await join()
    with pytest.raises(ValueError, match=r"valid|signature|range|values"):
        await client.call(NAME, path, interface, member, signature, *values)


# The end of the connection


async def test_calls_that_wait_when_the_connection_is_closed_say_so(join: Connect) -> None:
    _, client = await make_pair(join, Wait=("", "", asyncio.Event().wait))
    waiting = asyncio.create_task(call(client, "Wait"))
    await client.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId")
    await client.close()
    assert (await refusal(waiting))[0] == "Disconnected"
    assert (await refusal(call(client, "Wait")))[0] == "Disconnected"
    assert await client.wait_disconnected() is None


async def test_calls_that_wait_when_the_server_goes_say_so(served: Served, join: Connect) -> None:
    _, client = await make_pair(join, Wait=("", "", asyncio.Event().wait))
    waiting = asyncio.create_task(call(client, "Wait"))
    await client.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId")
    served.server.close()
    assert await client.wait_disconnected() is not None
    assert (await refusal(waiting))[0] == "Disconnected"


async def test_calls_that_wait_when_the_bus_ends_say_so(served: Served, join: Connect) -> None:
    _, client = await make_pair(join, Wait=("", "", asyncio.Event().wait))
    waiting = asyncio.create_task(call(client, "Wait"))
    await client.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId")
    served.bus.close()
    assert await client.wait_disconnected() is not None
    assert (await refusal(waiting))[0] == "Disconnected"


# Descriptors


async def test_a_file_in_a_call_is_one_in_the_handler(join: Connect) -> None:
    def read(file: Descriptor) -> bytes:
        return os.pread(file.fileno(), 100, 0)

    _, client = await make_pair(join, Read=("h", "ay", read))
    with open(os.memfd_create("test"), "w+b") as file:
        file.write(b"content")
        file.flush()
        assert await call(client, "Read", "h", file) == (b"content",)
        assert not file.closed


async def test_a_file_in_a_reply_is_the_callers(join: Connect) -> None:
    with open("/dev/null", "rb") as file:
        _, client = await make_pair(join, Open=("", "a{sv}", lambda: {"file": ("h", file)}))
        ((_, received),) = (await call(client, "Open"))[0].values()
    with received:
        assert os.fstat(received.fileno()).st_rdev == os.stat("/dev/null").st_rdev


async def test_a_descriptor_that_a_handler_returns_is_given_away(join: Connect) -> None:
    reader, writer = os.pipe()
    given = Descriptor(reader)
    _, client = await make_pair(join, Open=("", "(sh)", lambda: ("a pipe", given)))
    ((_, received),) = await call(client, "Open")
    with pytest.raises(ValueError, match="closed"):
        given.fileno()
    os.write(writer, b"through")
    os.close(writer)
    with received:
        assert os.read(received.fileno(), 100) == b"through"


@pytest.mark.parametrize("results", ["s", "hh", "(h)"])
async def test_a_descriptor_that_is_no_result_is_closed_or_left_alone(join: Connect, results: str) -> None:
    given = Descriptor(os.open("/dev/null", os.O_RDONLY))
    _, client = await make_pair(join, Open=("", results, lambda: given))
    assert (await refusal(call(client, "Open")))[0] == "Failed"
    given.close()


async def test_a_handler_may_keep_a_file(join: Connect) -> None:
    kept: list[int] = []
    _, client = await make_pair(join, Keep=("h", "", lambda file: kept.append(file.detach())))
    with open("/dev/null", "rb") as file:
        await call(client, "Keep", "h", file)
    os.fstat(kept[0])
    os.close(kept[0])


async def test_a_file_that_a_handler_leaves_is_closed(join: Connect) -> None:
    left: list[Descriptor] = []
    _, client = await make_pair(join, Leave=("ah", "", left.extend))
    with open("/dev/null", "rb") as file:
        await call(client, "Leave", "ah", [file, file])
    assert len(left) == 2
    for descriptor in left:
        with pytest.raises(ValueError, match="closed"):
            descriptor.fileno()


async def test_what_is_no_file_cannot_be_sent_as_one(join: Connect) -> None:
    client = await join()
    with pytest.raises(TypeError, match="not a file"):
        await call(client, "Read", "h", "name")


# Strangers


async def test_a_call_that_cannot_be_read_is_answered_with_an_error(served: Served, join: Connect) -> None:
    service = await join()
    handle = await open_node(served.node)
    async with await handle.hello(flags=HelloFlag.ACCEPT_FD) as stranger:
        id = int(service.unique_name.removeprefix(":1."))
        with await stranger.call(b"this is no message", destination=id) as reply:
            assert b"InconsistentMessage" in reply.payload


async def test_a_reply_that_cannot_be_read_ends_the_call(served: Served, join: Connect) -> None:
    client = await join()
    handle = await open_node(served.node)
    async with await handle.hello(flags=HelloFlag.ACCEPT_FD) as stranger:
        waiting = asyncio.create_task(client.call(f":1.{stranger.id}", PATH, INTERFACE, "M"))
        async for request in stranger:
            with request:
                await stranger.send(
                    b"no message either", destination=request.sender, cookie_reply=request.cookie
                )
            break
        assert (await refusal(waiting))[0] == "InconsistentMessage"
