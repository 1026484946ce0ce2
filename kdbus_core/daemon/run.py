"""`kdbusd` from its command line to its end.

Configuration, then sockets, then readiness is told, then the loop.  SIGHUP reads the configuration again,
and a wrong one changes nothing; SIGTERM and SIGINT end the domain with everything it made removed, and the
exit status is 0.  It is 1 when the start failed, 2 when the command line was wrong.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import resource
import signal
import sys
import time
from collections.abc import Sequence

from kdbus_core.daemon.config import Accounts, Config, ConfigError, load_config
from kdbus_core.daemon.host import Host, own_process
from kdbus_core.daemon.loop import new_event_loop
from kdbus_core.daemon.notify import Notifier
from kdbus_core.daemon.options import Options, parse_options
from kdbus_core.metadata import Process

NAME = "kdbusd"

ACCOUNTS = Accounts(lambda name: pwd.getpwnam(name).pw_uid, lambda name: grp.getgrnam(name).gr_gid)


class StartError(Exception):
    """Why there will be no domain."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kdbusd`; returns the exit status."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments, os.environ, os.geteuid())
    try:
        _run(options)
    except (StartError, ConfigError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: Options) -> None:
    if options.ready_fd is not None:
        _check_open(options.ready_fd)  # before one of our own has this number
    process = own_process()
    config = _read_config(options, process)
    raise_fd_limit()
    try:
        loop = new_event_loop(options.loop)
    except ImportError as error:
        raise StartError(f"uvloop is not installed: {error}") from error
    log = open_log()
    with contextlib.closing(loop):
        try:
            host = Host(options.directory, config, process, loop, log)
        except OSError as error:
            where = error.filename or options.directory  # often what it is about is something in there
            raise StartError(f"cannot serve {options.directory}: {where}: {error.strerror}") from error
        notifier = Notifier(os.environ)

        def reload() -> None:
            notifier.reloading(time.monotonic_ns())
            try:
                host.reload(_read_config(options, process))
                log.info("configuration reloaded")
            except ConfigError as error:
                log.error("configuration not reloaded: %s", error)
            notifier.ready()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, loop.stop)
        loop.add_signal_handler(signal.SIGHUP, reload)
        try:
            if options.ready_fd is not None:
                _say_ready(options.ready_fd, str(options.directory))
            notifier.ready()
            loop.run_forever()
        finally:
            notifier.stopping()
            host.close()


def _read_config(options: Options, process: Process) -> Config:
    if options.config is None:
        return Config()
    return load_config(options.config, process.credentials, ACCOUNTS)


def _check_open(fd: int) -> None:
    try:
        os.fstat(fd)
    except (OSError, OverflowError) as error:
        raise StartError(f"descriptor {fd} is not open") from error


def _say_ready(fd: int, text: str) -> None:
    """Write one line to a descriptor given on the command line, and close it unless it is a standard one."""
    try:
        os.write(fd, text.encode() + b"\n")
        if fd > 2:
            os.close(fd)
    except OSError as error:
        raise StartError(f"cannot write to descriptor {fd}: {error.strerror}") from error


def open_log() -> logging.Logger:
    """The daemon's log on standard error; KDBUSD_DEBUG in the environment makes it say more."""
    log = logging.getLogger(NAME)
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.DEBUG if os.environ.get("KDBUSD_DEBUG") else logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{NAME}[{os.getpid()}]: %(message)s"))
    log.addHandler(handler)
    return log


def raise_fd_limit() -> None:
    """Allow as many open descriptors as the hard limit does: every client costs three."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
