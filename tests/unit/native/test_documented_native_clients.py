"""The programs in docs/native-clients.md do what the text says."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from unit.native.native_programs import Connect, Served

DOCUMENT = Path(__file__).parents[3] / "docs" / "native-clients.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


async def run(program: str, node: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, str(node), stdout=asyncio.subprocess.PIPE
    )


async def test_the_client_talks_to_the_service(served: Served, join: Connect) -> None:
    service_program, client_program = PROGRAMS
    watcher = await join()
    started = asyncio.Event()
    await watcher.add_match("interface='org.example.Clock'", lambda message: started.set())
    service = await run(service_program, served.node)
    try:
        await started.wait()
        client = await run(client_program, served.node)
        output, _ = await client.communicate()
        assert client.returncode == 0
        time, error = output.decode().splitlines()
        assert re.fullmatch(r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}", time)
        assert error == "org.example.Error.NoSuchZone"
    finally:
        served.server.close()  # the service ends with its connection
        await service.communicate()
    assert service.returncode == 0
