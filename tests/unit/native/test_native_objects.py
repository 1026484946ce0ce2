"""What a program exports, and how it describes itself."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from unit.native.native_programs import Connect, refusal

from busproxy.native.objects import Objects

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"


def nothing() -> None:
    """Does nothing."""


async def test_a_program_describes_its_objects(join: Connect) -> None:
    service, client = await join(), await join()
    service.export("/org/example/A", "org.example.I", {"Echo": ("sa{sv}", "u", nothing)})
    service.export("/org/example/B", "org.example.I", {})
    (text,) = await client.call(service.unique_name, "/org/example/A", INTROSPECTABLE, "Introspect")
    root = ElementTree.fromstring(text)
    assert [interface.get("name") for interface in root.findall("interface")] == [
        "org.example.I",
        PEER,
        INTROSPECTABLE,
    ]
    arguments = [(arg.get("direction"), arg.get("type")) for arg in root.iter("arg")][:3]
    assert arguments == [("in", "s"), ("in", "a{sv}"), ("out", "u")]
    (text,) = await client.call(service.unique_name, "/org/example", INTROSPECTABLE, "Introspect")
    assert [node.get("name") for node in ElementTree.fromstring(text).findall("node")] == ["A", "B"]
    (text,) = await client.call(service.unique_name, "/", INTROSPECTABLE, "Introspect")
    assert [node.get("name") for node in ElementTree.fromstring(text).findall("node")] == ["org"]


async def test_every_path_answers_pings(join: Connect) -> None:
    service, client = await join(), await join()
    assert await client.call(service.unique_name, "/any/where", PEER, "Ping") == ()


async def test_what_is_exported_no_longer_is_not_there(join: Connect) -> None:
    service, client = await join(), await join()
    service.export("/a", "org.example.I", {"Do": ("", "", nothing)})
    assert await client.call(service.unique_name, "/a", "org.example.I", "Do") == ()
    service.unexport("/a", "org.example.I")
    refused = await refusal(client.call(service.unique_name, "/a", "org.example.I", "Do"))
    assert refused[0] == "UnknownObject"


def test_what_is_no_name_or_signature_is_not_exported() -> None:
    objects = Objects()
    for path, interface, member, arguments in (
        ("a", "org.example.I", "M", ""),
        ("/a", "org", "M", ""),
        ("/a", "org.example.I", "a.b", ""),
        ("/a", "org.example.I", "M", "z"),
    ):
        with pytest.raises(ValueError, match="is not a"):
            objects.add(path, interface, {member: (arguments, "", nothing)})


def test_an_interface_is_exported_once() -> None:
    objects = Objects()
    objects.add("/a", "org.example.I", {})
    with pytest.raises(ValueError, match="has an interface"):
        objects.add("/a", "org.example.I", {})
    objects.remove("/a", "org.example.I")
    with pytest.raises(ValueError, match="has no interface"):
        objects.remove("/a", "org.example.I")
