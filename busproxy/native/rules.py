"""Which handlers a signal is for: the exact match rules of one program.

The broker sorts out by bloom filters, and lets too much through at times; and what is addressed to this
program comes whether a rule asks for it or not. So every signal is compared with every rule here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from busproxy.match_entries import core_rule
from busproxy.native.messages import Message, filter_arguments
from busproxy.wire.match_rules import parse_match_rule
from kdbus_core.subscriptions import DRIVER, Arguments, Rule

SignalHandler = Callable[[Message], Awaitable[Any] | None]
"""Called with each signal; what it awaits goes on beside everything else."""

DRIVER_NAME = "org.freedesktop.DBus"


@dataclass(eq=False, slots=True)
class Match:
    """A rule that was added, and who is told; `cookie` is its number on the bus."""

    text: str
    cookie: int
    handler: SignalHandler
    rule: Rule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.rule = core_rule(parse_match_rule(self.text))


class Rules:
    """The rules of a program."""

    def __init__(self) -> None:
        self._matches: dict[int, Match] = {}

    def add(self, match: Match) -> None:
        """Have the rule looked at from now on."""
        self._matches[match.cookie] = match

    def remove(self, match: Match) -> bool:
        """Whether it was there."""
        return self._matches.pop(match.cookie, None) is not None

    def matching(self, message: Message, me: int, my_names: Collection[str]) -> Iterator[Match]:
        """The rules that hold for a signal, in the order in which they were added."""
        if not self._matches:
            return
        arguments: Arguments = [
            argument if argument is not None and len(argument[0]) == 1 else None  # type: ignore[misc]
            for argument in filter_arguments(message.signature, message.values)
        ]
        for match in list(self._matches.values()):
            if _holds(match.rule, message, me, my_names) and all(
                test.holds(arguments) for test in match.rule.arguments
            ):
                yield match


def _holds(rule: Rule, message: Message, me: int, my_names: Collection[str]) -> bool:
    """The conditions on the header."""
    return (
        rule.message_type in (None, message.type)
        and rule.interface in (None, message.interface)
        and rule.member in (None, message.member)
        and rule.path in (None, message.path)
        and _is_below(message.path or "", rule.path_namespace)
        and _is_from(rule.sender, message)
        and (
            rule.destination is None
            or (message.destination is not None and (rule.destination == me or rule.destination in my_names))
        )
    )


def _is_below(path: str, namespace: str | None) -> bool:
    return namespace in (None, "/", path) or path.startswith(f"{namespace}/")


def _is_from(sender: int | str | None, message: Message) -> bool:
    if sender is None:
        return True
    if sender == DRIVER:
        return message.sender == DRIVER_NAME
    if isinstance(sender, int):
        return message.sender == f":1.{sender}"
    return sender in message.sender_names
