"""What the comparison of two buses takes for a process id, and what not."""

from __future__ import annotations

from support.normalise import name_pids

ONE = {541: "bus", 700: "client"}
OTHER = {542: "bus", 700: "client"}


def test_a_number_is_a_process_id_where_both_have_one_of_the_same_label() -> None:
    assert name_pids([541, 700], ONE, [542, 700], OTHER) == (["<pid of bus>", "<pid of client>"],) * 2


def test_a_number_that_is_a_process_id_by_chance_stays() -> None:
    numbers = list(range(600))
    assert name_pids(numbers, ONE, numbers, OTHER) == (numbers, numbers)


def test_numbers_in_text_are_told_apart_in_the_same_way() -> None:
    one, other = name_pids("pid 541, serial 542, 1.541", ONE, "pid 542, serial 542, 1.541", OTHER)
    assert one == other == "pid <pid of bus>, serial 542, 1.541"


def test_where_shapes_differ_every_number_that_may_be_a_process_id_is_one() -> None:
    assert name_pids([541], ONE, [542, 1], OTHER) == (["<pid of bus>"], ["<pid of bus>", 1])


def test_what_is_inside_of_dictionaries_is_found() -> None:
    assert (
        name_pids({"a": (541, True)}, ONE, {"a": (542, True)}, OTHER) == ({"a": ("<pid of bus>", True)},) * 2
    )
