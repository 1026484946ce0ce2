"""What becomes of the limits in a configuration: some are the domain's, some the server's."""

from __future__ import annotations

from kdbus_core.connection import Limits
from kdbus_core.daemon.config import LimitsConfig
from kdbus_core.daemon.host import connection_limits, server_limits
from kdbus_core.transport.server import ServerLimits


def test_without_a_word_the_limits_are_those_of_kdbus() -> None:
    assert connection_limits(LimitsConfig()) == Limits()
    assert server_limits(LimitsConfig()) == ServerLimits()


def test_each_limit_of_a_connection_can_be_set() -> None:
    config = LimitsConfig(
        names_per_connection=1,
        matches_per_connection=2,
        requests_per_connection=3,
        waiting_messages_per_user=4,
        waiting_fds_per_user=5,
    )
    assert connection_limits(config) == Limits(1, 2, 3, 4, 5)


def test_each_limit_of_the_server_can_be_set() -> None:
    config = LimitsConfig(handles=7, handles_per_user=6, open_files_per_user=5)
    assert server_limits(config) == ServerLimits(7, 6, 5)


def test_who_may_have_more_connections_has_handles_for_them() -> None:
    assert server_limits(LimitsConfig(connections_per_user=5000)).handles_per_user == 5064
    assert server_limits(LimitsConfig(connections_per_user=5000, handles_per_user=9)).handles_per_user == 9
