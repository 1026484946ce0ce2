"""The buses that a configuration asks for, and what becomes of them when it changes.

`ConfiguredBuses` owns what it made: buses, custom endpoints, and the configured entries in the policy of each
bus, which it holds as a policy holder would.  Whatever clients make beside them is none of its business.

A configuration is applied whole or not at all.  First everything is made and changed that it asks for, each
step with its way back; if one is refused, all ways back are gone and nothing has changed.  Only then what is
no longer asked for is ended, which cannot fail.

What a live bus or endpoint was made with cannot be changed under its clients: such a configuration is
refused.  Policy can be changed, and whatever is decided after that goes by the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from kdbus_core.bus import Bus
from kdbus_core.daemon.config import BusConfig, Config, ConfigError, EndpointConfig
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials, Process
from kdbus_core.policy import PolicyEntry


class _Provided:
    """A bus that was made from a configuration; it stands for the entries it has in the bus' policy."""

    def __init__(self, bus: Bus, config: BusConfig) -> None:
        self.bus = bus
        self.config = config  # as applied last; its policy and endpoints are what there is
        self.endpoints: dict[str, Endpoint] = {}

    def replace_policy(self, entries: Sequence[PolicyEntry]) -> None:
        self.bus.policy.replace(self, entries)


class ConfiguredBuses:
    """Keeps a domain as the configuration applied last asks for.

    `process` makes the buses; others than its own only if it is privileged (CAP_IPC_OWNER).
    """

    def __init__(self, domain: Domain, process: Process) -> None:
        self._domain = domain
        self._process = process
        self._provided: dict[str, _Provided] = {}

    def apply(self, config: Config) -> None:
        """Make, change and end buses and endpoints until they are as asked for.

        Raises ConfigError with the key of what cannot be done; then everything is as it was.
        """
        made: dict[str, _Provided] = {}
        with ExitStack() as ways_back:
            for wanted in config.buses:
                made[wanted.name] = self._provide(config.file, wanted, ways_back)
            ways_back.pop_all()
        for name, provided in self._provided.items():
            if name not in made:
                provided.bus.close()
        for wanted in config.buses:
            provided = made[wanted.name]
            provided.config = wanted
            names = {endpoint.name for endpoint in wanted.endpoints}
            for name in provided.endpoints.keys() - names:
                provided.endpoints.pop(name).close()
        self._provided = made

    def _provide(self, file: str, wanted: BusConfig, ways_back: ExitStack) -> _Provided:
        provided = self._provided.get(wanted.name)
        if provided is None:
            provided = self._make_bus(file, wanted)
            ways_back.callback(provided.bus.close)
        else:
            _check_same(file, provided.config, wanted)
        before = {endpoint.name: endpoint for endpoint in provided.config.endpoints}
        try:
            provided.replace_policy(wanted.policy)
        except KdbusError as error:
            raise ConfigError(file, f"{wanted.key}.policy", error.why) from error
        ways_back.callback(provided.replace_policy, provided.config.policy)
        for endpoint in wanted.endpoints:
            self._provide_endpoint(file, provided, before.get(endpoint.name), endpoint, ways_back)
        return provided

    def _make_bus(self, file: str, wanted: BusConfig) -> _Provided:
        try:
            bus = self._domain.make_bus(
                wanted.name,
                self._maker(file, wanted),
                wanted.access,
                bloom=wanted.bloom,
                creator_mask=wanted.creator_metadata,
                required=wanted.required_metadata,
            )
        except KdbusError as error:
            raise ConfigError(file, wanted.key, f"cannot be made: {error.why}") from error
        return _Provided(bus, replace(wanted, policy=(), endpoints=()))

    def _maker(self, file: str, wanted: BusConfig) -> Process:
        own = self._process.credentials
        if (wanted.uid, wanted.gid) == (own.uid, own.gid):
            return self._process
        if not self._process.privileged:
            why = f"only with CAP_IPC_OWNER a daemon of uid {own.uid} makes buses for others"
            raise ConfigError(file, f"{wanted.key}.owner", why)
        return Process.of(Credentials(uid=wanted.uid, gid=wanted.gid, pid=own.pid))

    @staticmethod
    def _provide_endpoint(
        file: str,
        provided: _Provided,
        before: EndpointConfig | None,
        wanted: EndpointConfig,
        ways_back: ExitStack,
    ) -> None:
        try:
            if before is None:
                bus = provided.bus
                endpoint = bus.make_endpoint(wanted.name, bus.creator, wanted.access)
                provided.endpoints[wanted.name] = endpoint
                ways_back.callback(provided.endpoints.pop, wanted.name)
                ways_back.callback(endpoint.close)
            else:
                if before.access != wanted.access:
                    why = "cannot be changed while the endpoint is there"
                    raise ConfigError(file, f"{wanted.key}.access", why)
                endpoint = provided.endpoints[wanted.name]
                ways_back.callback(partial(endpoint.update_policy, before.policy))
            endpoint.update_policy(wanted.policy)
        except KdbusError as error:
            raise ConfigError(file, wanted.key, f"cannot be made: {error.why}") from error


_FIXED: dict[str, Callable[[BusConfig], object]] = {
    "owner": lambda bus: (bus.uid, bus.gid),
    "access": lambda bus: bus.access,
    "bloom": lambda bus: bus.bloom,
    "creator_metadata": lambda bus: bus.creator_metadata,
    "required_metadata": lambda bus: bus.required_metadata,
}
"""What a bus is made with, by the key that says it."""


def _check_same(file: str, before: BusConfig, wanted: BusConfig) -> None:
    for key, value in _FIXED.items():
        if value(before) != value(wanted):
            why = "cannot be changed while the bus is there"
            raise ConfigError(file, f"{wanted.key}.{key}", why)
