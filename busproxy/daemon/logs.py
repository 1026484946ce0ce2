"""The daemon's log: one line for each thing worth knowing, on stderr, in the system's log, or in both."""

from __future__ import annotations

import logging
import os
import sys
import syslog

NAME = "busproxyd"

_PRIORITIES = (
    (logging.ERROR, syslog.LOG_ERR),
    (logging.WARNING, syslog.LOG_WARNING),
    (logging.INFO, syslog.LOG_NOTICE),
)


class _SystemLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), syslog.LOG_DEBUG)
        syslog.syslog(priority, self.format(record))


def open_log(*, to_stderr: bool, to_system: bool) -> logging.Logger:
    """The daemon's logger; BUSPROXY_DEBUG in the environment makes it say more."""
    log = logging.getLogger(NAME)
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.DEBUG if os.environ.get("BUSPROXY_DEBUG") else logging.INFO)
    if to_stderr:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(f"{NAME}[{os.getpid()}]: %(message)s"))
        log.addHandler(handler)
    if to_system:
        syslog.openlog(NAME, syslog.LOG_PID, syslog.LOG_DAEMON)
        log.addHandler(_SystemLog())
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return log
