"""The benchmark's arithmetic, message bytes and options; nothing here measures time or starts a bus."""

import json
import socket
import struct
from collections.abc import Iterator

import pytest

from bench import messages
from bench.__main__ import FULL_DURATION_S, QUICK_DURATION_S, parse_options, rotate
from bench.buses import KINDS
from bench.client import BusError
from bench.frames import Frames
from bench.report import (
    ScenarioResult,
    Spread,
    build_document,
    choose_subject,
    compare,
    format_scenario,
    format_summary,
)
from bench.scenarios import SCENARIOS, Sample, percentile


def make_sample(*, operations: int = 1000, elapsed_s: float = 1.0, bus_cpu_s: float = 0.5) -> Sample:
    return Sample(operations, elapsed_s, bus_cpu_s, load_cpu_s=0.25, rss_kib=2048, p50_us=10.0, p99_us=20.0)


def make_result(**samples: list[Sample]) -> ScenarioResult:
    named = {name.replace("_", "-"): found for name, found in samples.items()}
    return ScenarioResult(SCENARIOS["call-1"], samples=named)


# Report


def test_a_sample_gives_its_rate_and_its_cpu_time_for_an_operation() -> None:
    sample = make_sample(operations=200, elapsed_s=0.5, bus_cpu_s=0.01)
    assert sample.rate == 400
    assert sample.cpu_us == pytest.approx(50)


def test_a_spread_holds_median_least_and_greatest() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([7], 50, 7), ([7], 99, 7), ([1, 2, 3, 4], 50, 2), (list(range(1, 101)), 99, 99), ([1, 2, 3], 100, 3)],
)
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[int], percent: int, expected: int
) -> None:
    assert percentile(values, percent) == expected


def test_a_ratio_is_taken_round_by_round_before_its_median() -> None:
    result = make_result(
        dbus_daemon=[make_sample(operations=n) for n in (100, 200, 400)],
        busproxyd=[make_sample(operations=n) for n in (300, 400, 200)],
    )
    (ratio,) = compare(result, "busproxyd")
    assert (ratio.subject, ratio.other) == ("busproxyd", "dbus-daemon")
    assert ratio.rate == Spread(2.0, 0.5, 3.0)


def test_a_cpu_ratio_below_one_means_the_subject_needs_less() -> None:
    result = make_result(
        dbus_daemon=[make_sample(bus_cpu_s=0.8)],
        busproxyd=[make_sample(bus_cpu_s=0.2)],
    )
    assert compare(result, "busproxyd")[0].cpu.median == pytest.approx(0.25)


def test_a_bus_that_failed_takes_no_part_in_ratios() -> None:
    result = make_result(dbus_daemon=[make_sample()], dbus_broker=[make_sample()], busproxyd=[make_sample()])
    result.failures["dbus-daemon"] = "it ended"
    assert [ratio.other for ratio in compare(result, "busproxyd")] == ["dbus-broker"]
    assert compare(result, "dbus-daemon") == []


def test_the_table_says_why_a_bus_has_no_numbers() -> None:
    result = make_result(dbus_daemon=[make_sample()])
    result.failures["busproxyd"] = "the bus closed the connection"
    assert "busproxyd: no result, because the bus closed the connection" in format_scenario(
        result, "busproxyd"
    )


def test_a_column_nobody_fills_is_not_shown() -> None:
    bare = Sample(1000, 1.0, 0.5, 0.25, 2048, p50_us=None, p99_us=None)
    assert "p50" in format_scenario(make_result(busproxyd=[make_sample()]), "busproxyd")
    assert "p50" not in format_scenario(make_result(busproxyd=[bare]), "busproxyd")


def test_without_a_second_bus_there_is_no_summary() -> None:
    assert format_summary([make_result(busproxyd=[make_sample()])], "busproxyd") == ""


def test_the_subject_is_busproxyd_or_else_the_last_bus() -> None:
    assert choose_subject(["dbus-daemon", "busproxyd", "dbus-broker"]) == "busproxyd"
    assert choose_subject(["dbus-daemon", "dbus-broker"]) == "dbus-broker"


def test_the_document_survives_json_and_keeps_every_sample() -> None:
    result = make_result(dbus_daemon=[make_sample()] * 3, busproxyd=[make_sample()] * 3)
    document = build_document(
        [result], "busproxyd", environment={"kernel": "x"}, left_out={"dbus-broker": "why"}
    )
    read = json.loads(json.dumps(document))
    assert read["left_out"] == {"dbus-broker": "why"}
    (scenario,) = read["scenarios"]
    assert len(scenario["buses"]["busproxyd"]["samples"]) == 3
    assert scenario["ratios"][0]["rate"]["median"] == 1.0


# Messages


def test_a_call_is_laid_out_as_the_specification_says() -> None:
    little = messages.build_call("a.b", "/", "c.d", "E")
    assert little[0:4] == bytes((messages.ENDIAN_MARK, 1, 0, 1))
    fields = (
        b"\x01\x01o\0" + struct.pack("=I", 1) + b"/\0" + bytes(6)
        + b"\x06\x01s\0" + struct.pack("=I", 3) + b"a.b\0" + bytes(4)
        + b"\x02\x01s\0" + struct.pack("=I", 3) + b"c.d\0" + bytes(4)
        + b"\x03\x01s\0" + struct.pack("=I", 1) + b"E\0"
    )  # fmt: skip
    assert little[4:16] == struct.pack("=III", 0, 1, len(fields))
    assert little[16 : 16 + len(fields)] == fields
    assert len(little) % 8 == 0


def test_fields_read_back_as_they_were_written() -> None:
    call = bytes(messages.build_call("a.b", "/x", "c.d", "E", signature="ay", body=messages.build_bytes(100)))
    assert messages.parse_fields(call) == {
        messages.PATH: "/x",
        messages.DESTINATION: "a.b",
        messages.INTERFACE: "c.d",
        messages.MEMBER: "E",
        messages.SIGNATURE: "ay",
    }


@pytest.mark.parametrize("body_length", [0, 4, 5, 65536])
def test_the_frame_length_is_the_length_of_the_message(body_length: int) -> None:
    body = messages.build_bytes(body_length) if body_length else b""
    message = messages.build_call("a.b", "/", "c.d", "E", signature="ay" if body else "", body=body)
    assert len(body) == body_length
    assert messages.frame_length(bytes(9) + message, 9) == len(message)


def test_serials_are_where_the_load_patches_them() -> None:
    reply = messages.build_reply(":1.7")
    messages.UINT32.pack_into(reply, messages.SERIAL_OFFSET, 41)
    messages.UINT32.pack_into(reply, messages.REPLY_SERIAL_OFFSET, 42)
    assert messages.FRAMING.unpack_from(reply)[2] == 41
    assert messages.parse_fields(bytes(reply))[messages.REPLY_SERIAL] == 42


def test_a_body_of_strings_is_aligned() -> None:
    assert (
        messages.build_strings("ab", "c") == struct.pack("=I", 2) + b"ab\0\0" + struct.pack("=I", 1) + b"c\0"
    )


def test_a_message_in_the_other_byte_order_is_refused() -> None:
    call = messages.build_call("a.b", "/", "c.d", "E")
    call[0] ^= ord("l") ^ ord("B")
    with pytest.raises(messages.BadMessageError):
        messages.parse_fields(bytes(call))


# Counting


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_messages_of_one_shape_are_counted_and_a_begun_one_is_kept(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    reply = bytes(messages.build_reply(":1.7"))
    frames = Frames(ends[0])
    ends[1].sendall(reply * 3 + reply[:20])
    frames.read()
    assert frames.count(messages.RETURN) == 3
    ends[1].sendall(reply[20:])
    frames.read()
    assert frames.count(messages.RETURN) == 1
    assert frames.end == 0


def test_messages_of_different_shapes_are_counted(ends: tuple[socket.socket, socket.socket]) -> None:
    short, long = bytes(messages.build_reply(":1.7")), bytes(messages.build_reply(":1.1234567890"))
    frames = Frames(ends[0])
    ends[1].sendall(short + long + short)
    frames.read()
    assert frames.count_alike(messages.RETURN) == (0, 0)
    assert frames.count(messages.RETURN) == 3


def test_a_message_of_another_kind_among_replies_ends_the_run(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    reply = bytes(messages.build_reply(":1.7"))
    refusal = bytearray(reply)
    refusal[1] = messages.ERROR
    frames = Frames(ends[0])
    ends[1].sendall(reply + refusal + reply)
    frames.read()
    with pytest.raises(BusError):
        frames.count(messages.RETURN)


# Options


def test_without_options_everything_is_measured_on_one_core() -> None:
    options = parse_options([])
    assert options.scenarios == tuple(SCENARIOS)
    assert options.buses == tuple(KINDS)
    assert options.pin
    assert not options.required
    assert options.duration_s == FULL_DURATION_S


def test_quick_takes_the_three_main_scenarios_in_shorter_runs() -> None:
    options = parse_options(["--quick"])
    assert options.scenarios == ("call-1", "call-64", "signal-10")
    assert options.duration_s == QUICK_DURATION_S
    assert parse_options(["--quick", "--duration", "2"]).duration_s == 2


def test_scenarios_and_buses_can_be_chosen_one_by_one() -> None:
    options = parse_options(
        [
            "--scenario",
            "driver",
            "--scenario",
            "call-1",
            "--scenario",
            "driver",
            "--bus",
            "dbus-daemon",
            "--no-pin",
        ]
    )
    assert options.scenarios == ("driver", "call-1")
    assert options.buses == ("dbus-daemon",)
    assert options.required
    assert not options.pin


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scenario", "nonsense"],
        ["--bus", "nonsense"],
        ["--rounds", "0"],
        ["--duration", "-1"],
        ["--duration", "nan"],
        ["--quick", "--scenario", "call-1"],
    ],
)
def test_a_wrong_command_line_ends_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_each_round_begins_with_another_bus() -> None:
    assert [rotate(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
