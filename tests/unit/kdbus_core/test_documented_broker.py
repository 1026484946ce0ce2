"""What `docs/broker.md` shows and lists is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from kdbus_core.abi import Command

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENT = (REPOSITORY / "docs" / "broker.md").read_text()


def test_the_example_runs_and_shows_the_message() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "org.example.Echo" in done.stdout
    assert "hello" in done.stdout


def test_every_command_is_listed_with_its_number() -> None:
    listed: dict[str, int] = {}
    for names, numbers in re.findall(r"^\| ([A-Z_, ]+) \| ([0-9a-fx, ]+) \|", DOCUMENT, re.MULTILINE):
        values = [int(number, 16) for number in numbers.split(", ")]
        listed.update(zip(names.split(", "), values, strict=True))
    assert listed == {command.name: command.value for command in Command}
