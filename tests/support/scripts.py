"""Client scripts: a library's scenarios as a program on the bus, its findings as values.

The libraries run in processes of their own, as their users run them: what they leak or warn about at exit
stays there, and the system's Python can have packages that the tests' own does not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support.bus import Bus
from support.programs import SYSTEM_PYTHON, run


def run_script(bus: Bus, script: str, *arguments: str, system_python: bool = False) -> Any:
    """Run a client script of this package to its good end; returns what it found."""
    interpreter = SYSTEM_PYTHON if system_python else sys.executable
    outcome = run(bus, interpreter, str(Path(__file__).with_name(script)), *arguments)
    return json.loads(outcome.stdout)
