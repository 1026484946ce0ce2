"""The broker's benchmark, run on small buses: what it does and says, never how long it takes."""

import gc
import json
from pathlib import Path
from random import Random

import pytest

from bench import broker
from bench.broker import (
    DEFAULT_ROUNDS,
    FULL_ROUND_S,
    QUICK_ROUND_S,
    Row,
    choose_sizes,
    find_growth,
    format_rows,
    main,
    measure_case,
    parse_options,
)
from bench.broker_cases import CASES, Case, Operation
from bench.broker_world import (
    check_idle,
    connect,
    inbox_of,
    make_bus,
    make_foreign_mask,
    make_signal,
)
from kdbus_core.message import Message, Vec

SIZES = (16, 256)
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)


def make_row(size: int, *cpu_us: float, growth: float = 1.0) -> Row:
    return Row("names", "acquire, release", size, "names", 7, cpu_us, growth)


# Cases


@EVERY_CASE
def test_an_operation_leaves_everything_as_it_was(case: Case) -> None:
    for size in SIZES:
        for operation in case.prepare(size):
            for times in (0, 1, 3, 300):
                operation.run(times)
                operation.check()


@EVERY_CASE
def test_a_case_has_the_same_operations_at_each_of_its_ascending_sizes(case: Case) -> None:
    assert len(case.sizes) >= 2
    assert list(case.sizes) == sorted(set(case.sizes))
    first, second = ([operation.title for operation in case.prepare(size)] for size in SIZES)
    assert first == second
    assert len(set(first)) == len(first)


def test_a_message_that_was_not_read_is_noticed() -> None:
    bus = make_bus()
    sender, receiver = connect(bus), connect(bus)
    check_idle([sender, receiver])
    bus.send(sender, Message([Vec(bytes(8))], dst_id=receiver.id, cookie=1))
    with pytest.raises(AssertionError):
        check_idle([sender, receiver])


def test_a_message_that_was_read_and_not_freed_is_noticed() -> None:
    bus = make_bus()
    receiver = connect(bus)
    inbox_of(receiver).pool.answer(bytes(8))
    with pytest.raises(AssertionError):
        check_idle([receiver])


def test_a_message_that_was_lost_is_noticed() -> None:
    bus = make_bus()
    receiver = connect(bus)
    inbox_of(receiver).on_lost()
    with pytest.raises(AssertionError):
        check_idle([receiver])


@pytest.mark.parametrize("metadata", [False, True])
def test_metadata_goes_along_where_both_ends_want_it(*, metadata: bool) -> None:
    bus = make_bus()
    sender, receiver = (connect(bus, metadata=metadata) for _ in range(2))
    bus.send(sender, Message([Vec(bytes(8))], dst_id=receiver.id, cookie=1))
    assert (inbox_of(receiver).pool.busy > 300) is metadata


def test_foreign_masks_are_the_same_in_each_run_and_contained_in_no_signal() -> None:
    one, other = Random(1), Random(1)
    masks = [make_foreign_mask(one) for _ in range(500)]
    assert masks == [make_foreign_mask(other) for _ in range(500)]
    asked = [int.from_bytes(mask.generations[0], "little") for mask in masks]
    for number in range(20):
        bits = int.from_bytes(make_signal(number).bits, "little")
        assert not any(mask & bits == mask for mask in asked)


def test_two_buses_see_the_same_times() -> None:
    one, other = make_bus().domain, make_bus().domain
    assert [one.monotonic() for _ in range(3)] == [other.monotonic() for _ in range(3)]


# Measuring


def test_each_size_gets_a_row_with_all_rounds_for_each_operation() -> None:
    rows = list(measure_case(CASES["match-senders"], (10, 20), rounds=3, round_s=0))
    assert [(row.operation, row.size) for row in rows] == [
        ("match", 10),
        ("match", 20),
        ("match, unheard-of", 10),
        ("match, unheard-of", 20),
        ("add, remove", 10),
        ("add, remove", 20),
    ]
    for row in rows:
        assert (row.case, row.unit) == ("match-senders", "matches")
        assert len(row.cpu_us) == 3
        assert min(row.cpu_us) > 0
        assert row.times == 1
    assert [row.growth for row in rows if row.size == 10] == [1.0] * 3


def test_the_collector_is_as_it_was_afterwards() -> None:
    before = gc.isenabled(), gc.get_freeze_count()
    list(measure_case(CASES["names"], (10,), rounds=1, round_s=0))
    assert (gc.isenabled(), gc.get_freeze_count()) == before


def test_an_operation_that_did_not_work_gives_no_row() -> None:
    def fail() -> None:
        raise AssertionError

    case = Case("broken", "", "bytes", (1, 2), lambda size: [Operation("fail", lambda times: None, fail)])
    with pytest.raises(AssertionError):
        list(measure_case(case, case.sizes, rounds=1, round_s=0))


def test_growth_is_taken_round_by_round_before_its_median() -> None:
    assert find_growth([2.0, 40.0, 9.0], [1.0, 10.0, 3.0]) == 3.0


# Telling


def test_the_table_has_a_line_for_each_row() -> None:
    table = format_rows([make_row(10, 2.0, 4.0, 100.0), make_row(100, 5.0, growth=1.25)])
    heading, first, second = table.splitlines()
    assert heading.split() == ["size", "CPU", "µs", "min", "to", "max", "op/s", "growth"]
    assert first.split() == [
        "names:",
        "acquire,",
        "release",
        "10",
        "names",
        "4.00",
        "2.00",
        "to",
        "100.00",
        "250000",
        "1.00",
    ]
    assert second.split() == [
        "names:",
        "acquire,",
        "release",
        "100",
        "names",
        "5.00",
        "5.00",
        "to",
        "5.00",
        "200000",
        "1.25",
    ]


def test_a_run_prints_a_table_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "QUICK_ROUND_S", 0.0)
    path = tmp_path / "found.json"
    assert main(["--quick", "--rounds", "2", "--only", "names", "--only", "call", "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    about, _, *lines = captured.out.splitlines()
    assert "2 rounds" in about
    assert [line.split(":")[0] for line in lines] == ["call", "call", "names", "names"]
    document = json.loads(path.read_text())
    assert document["format"] == 1
    assert document["rounds"] == 2
    assert [(row["case"], row["size"]) for row in document["rows"]] == [
        ("call", 8),
        ("call", 8192),
        ("names", 100),
        ("names", 1000),
    ]
    for row in document["rows"]:
        assert len(row["cpu_us"]) == 2
        assert row.keys() >= {"operation", "unit", "times", "growth", "median_us", "operations_per_s"}


# Options


def test_without_options_every_case_is_measured_at_all_sizes() -> None:
    options = parse_options([])
    assert options.cases == tuple(CASES)
    assert (options.rounds, options.round_s) == (DEFAULT_ROUNDS, FULL_ROUND_S)
    assert options.json_path is None
    assert all(choose_sizes(case, options) == case.sizes for case in CASES.values())


def test_quick_takes_shorter_rounds_and_two_sizes() -> None:
    options = parse_options(["--quick"])
    assert options.round_s == QUICK_ROUND_S
    assert {len(choose_sizes(case, options)) for case in CASES.values()} == {2}


def test_cases_are_measured_in_their_order_whatever_the_options_say() -> None:
    assert parse_options(["--only", "names", "--only", "call", "--only", "names"]).cases == ("call", "names")


@pytest.mark.parametrize(
    "arguments", [["--only", "nonsense"], ["--rounds", "0"], ["--rounds", "x"], ["more"]]
)
def test_a_wrong_command_line_ends_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
