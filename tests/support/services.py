"""Real services for the programs to talk to, one per client library, all with the same surface.

Each service owns a well-known name and one object with methods that echo every type, fail on purpose, pass
file descriptors and emit a signal, and with properties. A service is a process of its own; it is ready when
it has printed `ready`, which it does after the bus has given it the name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from support.bus import Bus
from support.programs import SYSTEM_PYTHON, Child

PATH = "/com/example/Service"
INTERFACE = "com.example.Service"

NEXT = "com.example.Next"
GDBUS = "com.example.GDBus"
PYTHON = "com.example.Python"

_SCRIPTS = {
    NEXT: (sys.executable, "service_dbus_next.py"),
    GDBUS: (SYSTEM_PYTHON, "service_gdbus.py"),
    PYTHON: (SYSTEM_PYTHON, "service_python_dbus.py"),
}


def start_service(bus: Bus, name: str = NEXT) -> Child:
    """Start the service with that well-known name and wait until it has the name; end it with `stop`."""
    interpreter, script = _SCRIPTS[name]
    child = Child(bus, interpreter, str(Path(__file__).with_name(script)), name, label="service")
    try:
        child.wait_for(r"^ready$")
    except BaseException:
        child.stop()
        raise
    return child
