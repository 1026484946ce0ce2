"""AddMatch, RemoveMatch and BecomeMonitor: who listens to what.

Equal rules of a peer share one subscription of the broker and are counted;
each still counts against the limit, as in dbus-daemon.
"""

from __future__ import annotations

from typing import Any

from busproxy.driver.call import Call, Method, MethodError
from busproxy.peer import Peer, Phase, Subscription
from busproxy.router import DRIVER_NAME, connection_id
from busproxy.wire.match_rules import MatchRule, MatchRuleError, parse_match_rule
from kdbus_core.subscriptions import DRIVER, ArgumentTest, Rule

_NOBODY = -1  # a unique name that this bus never gives out


def _who(name: str | None) -> int | str | None:
    if name is None or name[0] != ":":
        return DRIVER if name == DRIVER_NAME else name
    id = connection_id(name)
    return _NOBODY if id is None else id


def core_rule(rule: MatchRule) -> Rule:
    """A client's match rule in the broker's terms."""
    return Rule(
        message_type=rule.type,
        sender=_who(rule.sender),
        interface=rule.interface,
        member=rule.member,
        path=rule.path,
        path_namespace=rule.path_namespace,
        destination=_who(rule.destination),
        arguments=tuple(ArgumentTest(arg.index, arg.kind, arg.value) for arg in rule.args),
        eavesdrop=rule.eavesdrop,
    )


def _parse(text: str) -> MatchRule:
    try:
        return parse_match_rule(text)
    except MatchRuleError as error:
        raise MethodError(error.error_name.rpartition(".")[2], str(error)) from error


def _add_match(call: Call) -> tuple[Any, ...]:
    (text,) = call.arguments
    peer, router = call.peer, call.driver.router
    limit = router.limits.max_match_rules_per_connection
    if peer.rules >= limit:
        raise MethodError(
            "LimitsExceeded",
            f'Connection "{peer.unique_name}" is not allowed to add more match rules '
            "(increase limits in configuration file if required; "
            f"max_match_rules_per_connection={limit})",
        )
    rule = _parse(text)
    subscription = peer.subscriptions.get(rule)
    if subscription is not None:
        subscription.count += 1
    else:
        cookie = peer.next_cookie()
        router.bus.subscribe(call.connection, cookie, core_rule(rule))
        peer.subscriptions[rule] = Subscription(cookie)
    peer.rules += 1
    call.driver.statistics.on_match_added(peer)
    return ()


def _remove_match(call: Call) -> tuple[Any, ...]:
    (text,) = call.arguments
    peer = call.peer
    rule = _parse(text)
    subscription = peer.subscriptions.get(rule)
    if subscription is None:
        raise MethodError("MatchRuleNotFound", "The given match rule wasn't found and can't be removed")
    subscription.count -= 1
    peer.rules -= 1
    call.driver.statistics.on_match_removed()
    if not subscription.count:
        del peer.subscriptions[rule]
        call.driver.router.bus.unsubscribe(call.connection, subscription.cookie)
    return ()


def _become_monitor(call: Call) -> None:
    texts, flags = call.arguments
    if flags:
        raise MethodError("InvalidArgs", "BecomeMonitor does not support any flags yet")
    rules = [_parse(text) for text in texts] or [MatchRule()]
    peer, driver = call.peer, call.driver
    # From here on nothing can fail.  The acknowledgement comes first, then the
    # names are lost, and then everything is seen.
    driver.reply(call.message, MONITORING_METHODS[0], ())
    monitor(peer, call, rules)


def monitor(peer: Peer, call: Call, rules: list[MatchRule]) -> None:
    """Take a peer off the bus and show it everything that matches one of `rules`."""
    bus = call.driver.router.bus
    connection = call.connection
    call.driver.router.activation.on_disconnected(peer)
    call.driver.statistics.on_matches_gone(peer.rules)
    peer.subscriptions.clear()
    peer.rules = 0
    peer.flows.clear()
    peer.phase = Phase.MONITOR
    bus.become_monitor(connection, [core_rule(rule) for rule in rules])


METHODS = (
    Method("AddMatch", "s", "", _add_match),
    Method("RemoveMatch", "s", "", _remove_match),
)

MONITORING_METHODS = (Method("BecomeMonitor", "asu", "", _become_monitor, anywhere=False, privileged=True),)
