"""`busproxyd` from its command line to its end.

The order is dbus-daemon's: configuration, listening sockets, background, pid
file, change of user, then the loop.  SIGTERM and SIGINT end it with
everything it made removed, SIGHUP reloads the configuration.  The exit status
is 0 then, 1 when the start failed, and 3 when the broker of `--core` has gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from busproxy import __version__
from busproxy.daemon import process
from busproxy.daemon.logs import NAME, open_log
from busproxy.options import Action, Options, Syslog, UsageError, parse_options
from busproxy.policy.loader import ConfigError, load_config
from busproxy.transport.listeners import ListenError, advertised_address, open_listeners
from busproxy.transport.loop import new_event_loop
from busproxy.transport.systemd import InheritedFdError, Notifier, take_listen_fds
from busproxy.wire.address import AddressError
from kdbus_core.errors import KdbusError

if TYPE_CHECKING:
    import asyncio
    import logging
    from collections.abc import Callable

    from busproxy.daemon.bus import EmbeddedBus
    from busproxy.policy.config import BusConfig
    from busproxy.transport.listeners import Listener
    from busproxy.transport.poller import Poller

VERSION_TEXT = f"""busproxyd {__version__}
A D-Bus message bus; D-Bus specification 0.43
"""

_PID_FILE_EXISTS = 'The pid file "{}" exists, if the message bus is not running, remove this file'


class StartError(Exception):
    """The bus cannot be started; the text says why."""


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon; returns its exit status."""
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.status
    match options.action:
        case Action.VERSION:
            print(VERSION_TEXT, end="")
            return 0
        case Action.INTROSPECT:
            from busproxy.driver import INTERFACES
            from busproxy.driver.introspection import introspect
            from busproxy.driver.outbox import DRIVER_PATH

            print(introspect(DRIVER_PATH, INTERFACES))
            return 0
        case Action.RUN:
            pass
    try:
        _start(options)
    except (StartError, ConfigError, ListenError, AddressError, InheritedFdError) as error:
        print(f"{NAME}: Failed to start message bus: {error}", file=sys.stderr)
        return 1
    return 0


def _start(options: Options) -> None:
    notifier = Notifier(os.environ)
    inherited = take_listen_fds(os.environ, os.getpid())
    config = load_config(options.config_file)
    if config.pidfile and options.write_pidfile and os.path.exists(config.pidfile):
        # Before the sockets are made: those of a bus that runs must not be touched.
        raise StartError(_PID_FILE_EXISTS.format(config.pidfile))
    fd_limit = process.raise_fd_limit()
    listeners = _listen(options, config, inherited)
    address = advertised_address(listeners)
    pid_file: process.PidFile | None = None
    try:
        parent: int | None = None
        if config.fork if options.fork is None else options.fork:
            parent = process.fork_into_background(keep_umask=config.keep_umask)
        if config.pidfile and options.write_pidfile:
            try:
                pid_file = process.PidFile(config.pidfile)
            except FileExistsError as error:
                raise StartError(_PID_FILE_EXISTS.format(config.pidfile)) from error
            except OSError as error:
                raise StartError(f'Cannot write the pid file "{config.pidfile}": {error.strerror}') from error
        if config.user is not None and os.geteuid() == 0:
            try:
                process.become_user(config.user)
            except (KeyError, OSError) as error:
                raise StartError(f'Cannot become user "{config.user}": {error}') from error
        loop, poller = _make_loop(options)
        try:
            _serve(options, config, listeners, address, loop, poller, notifier, parent, fd_limit)
        finally:
            loop.close()
    finally:
        for listener in listeners:
            listener.close()
        if pid_file is not None:
            pid_file.remove()


def _make_bus(
    options: Options,
    config: BusConfig,
    listeners: list[Listener],
    address: str,
    loop: asyncio.AbstractEventLoop,
    poller: Poller,
    log: logging.Logger,
    fd_limit: tuple[int, int],
) -> EmbeddedBus:
    make: Callable[..., EmbeddedBus]
    if options.core is None:
        from busproxy.daemon.bus import EmbeddedBus

        make = EmbeddedBus
    else:
        from busproxy.daemon.split import SplitBus

        make = partial(SplitBus, options.core)
    try:
        return make(
            options.config_file,
            config,
            listeners,
            address,
            loop,
            poller,
            log,
            systemd_activation=options.systemd_activation,
            fd_limit=fd_limit,
        )
    except KdbusError as error:
        raise StartError(f'Cannot use the bus at "{options.core}": {error}') from error


def _run(loop: asyncio.AbstractEventLoop, start: Callable[[], None]) -> None:
    """Run the loop, and `start` in it: before it runs, uvloop forgets the signals that come."""
    failures: list[Exception] = []

    def begin() -> None:
        try:
            start()
        except Exception as error:
            failures.append(error)
            loop.stop()

    loop.call_soon(begin)
    loop.run_forever()
    if failures:
        raise failures[0]


def _open_to_natives(bus: EmbeddedBus, directory: str) -> None:
    try:
        bus.open_to_natives(directory)
    except BlockingIOError as error:
        raise StartError(f'Directory "{directory}" is open to native peers of another bus') from error
    except OSError as error:
        raise StartError(f'Cannot open "{directory}" to native peers: {error.strerror or error}') from error


def _listen(options: Options, config: BusConfig, inherited: list[tuple[int, str]]) -> list[Listener]:
    addresses = [options.address] if options.address else [listen.value for listen in config.listens]
    if not addresses:
        raise StartError("Configuration file needs one or more <listen> elements giving addresses")
    return open_listeners(addresses, runtime_dir=os.environ.get("XDG_RUNTIME_DIR"), inherited_fds=inherited)


def _make_loop(options: Options) -> tuple[asyncio.AbstractEventLoop, Poller]:
    import asyncio

    try:
        loop, poller = new_event_loop(options.loop)
    except ImportError as error:
        raise StartError(f"uvloop is not installed: {error}") from error
    asyncio.set_event_loop(loop)
    return loop, poller


def _serve(
    options: Options,
    config: BusConfig,
    listeners: list[Listener],
    address: str,
    loop: asyncio.AbstractEventLoop,
    poller: Poller,
    notifier: Notifier,
    parent: int | None,
    fd_limit: tuple[int, int],
) -> None:
    to_system = options.syslog in (Syslog.ALSO, Syslog.ONLY) or (
        options.syslog is Syslog.FROM_CONFIG and config.syslog
    )
    log = open_log(to_stderr=options.syslog is not Syslog.ONLY, to_system=to_system)
    bus = _make_bus(options, config, listeners, address, loop, poller, log, fd_limit)

    def reload() -> None:
        notifier.reloading(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
        with contextlib.suppress(ValueError):  # logged where it was found; the old configuration stays
            bus.reload()
        notifier.ready()

    def start() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, loop.stop)
        loop.add_signal_handler(signal.SIGHUP, reload)
        if options.native is not None:
            _open_to_natives(bus, options.native)
        bus.start()
        if options.print_address is not None:
            process.write_line(options.print_address, address)
        if options.print_pid is not None:
            process.write_line(options.print_pid, str(os.getpid()))
        if parent is not None:
            process.say_ready(parent)
        notifier.ready()

    try:
        _run(loop, start)
    finally:
        notifier.stopping()
        bus.close()
