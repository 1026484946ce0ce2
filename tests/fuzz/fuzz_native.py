"""Any packets and descriptors at all, to a server: `python -m tests.fuzz.fuzz_native [--seconds N] [CORPUS]`.

What is done with an input, and what must hold after each step of it, is in
`tests/property/native_session.py`: real sockets, and the server in this process. With atheris (the extra
`fuzz`) the inputs are chosen by what they cover of `kdbus_core`; those worth keeping are kept in the
directory CORPUS, a temporary one unless it is given. Without atheris they come from the mutator of
`fuzz_handle`, judged by the commands and their outcomes.

A failure is shown with what was done up to it and with the input, in hexadecimal; `--replay HEX` does it
again. The exit status is 0 when nothing was found.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS, TESTS / "property"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from fuzz.fuzz_handle import KEPT, MAX_INPUT, has_atheris, mutate, seed_inputs  # noqa: E402 - found there


def perform(data: bytes) -> frozenset[str]:
    """A session with these bytes; returns which outcomes it had."""
    from kdbus_session import cut_steps
    from native_session import run_session

    try:
        return run_session(cut_steps(data))
    except BaseException as error:
        error.add_note(f"the input: {data.hex()}")
        raise


def fuzz_guided(seconds: float, seed: int, corpus: Path | None) -> int:
    """Have atheris choose; it ends the process itself when it finds something."""
    import atheris

    with atheris.instrument_imports(include=["kdbus_core"]):
        import native_session  # noqa: F401 - what is imported now is instrumented

    started = time.monotonic()
    executions = 0

    def test_one(data: bytes) -> None:
        nonlocal executions
        try:
            perform(data)
        except BaseException as error:
            traceback.print_exception(error)
            raise
        executions += 1
        if executions % 200 == 0:
            print(f"{executions} sessions in {time.monotonic() - started:.0f} s", flush=True)

    inputs = Path(tempfile.mkdtemp(prefix="fuzz-native-")) if corpus is None else corpus
    inputs.mkdir(parents=True, exist_ok=True)
    if not any(inputs.iterdir()):
        for number, data in enumerate(seed_inputs(random.Random(seed), 50)):
            (inputs / f"seed-{number}").write_bytes(data)
    print(f"seed {seed}; inputs are kept in {inputs}", flush=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={max(1, int(seconds))}",
        f"-max_len={MAX_INPUT}",
        f"-seed={seed % (1 << 31) or 1}",
        "-len_control=20",
        "-timeout=60",
        "-print_final_stats=1",
        f"-artifact_prefix={inputs}/found-",
        str(inputs),
    ]
    atheris.Setup(arguments, test_one)
    atheris.Fuzz()
    return 0


def fuzz_by_chance(seconds: float, seed: int) -> int:
    """Mutate what reached something new; returns the exit status."""
    chance = random.Random(seed)
    waiting = seed_inputs(chance, 20)
    kept: list[bytes] = [b""]
    known: set[str] = set()
    executions = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = waiting.pop() if waiting else mutate(chance, kept)
        try:
            outcomes = perform(data)
        except Exception as error:
            traceback.print_exception(error)
            print(f"seed {seed}, session {executions}", file=sys.stderr)
            return 1
        executions += 1
        if outcomes - known:
            known |= outcomes
            kept.append(data)
            del kept[:-KEPT]
    print(f"{executions} sessions in {seconds:g} s with seed {seed}, {len(known)} outcomes: all held")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz_native", description="Send anything at all to a server.")
    parser.add_argument(
        "corpus", nargs="?", type=Path, help="a directory to start from and to keep inputs in"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    parser.add_argument("--by-chance", action="store_true", help="do without atheris")
    parser.add_argument("--replay", metavar="HEX", help="do this one input")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        perform(bytes.fromhex(options.replay))
        return 0
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    if options.by_chance:
        return fuzz_by_chance(options.seconds, seed)
    if not has_atheris():
        print("atheris is not installed (pip install '.[fuzz]'): fuzzing by chance instead", file=sys.stderr)
        return fuzz_by_chance(options.seconds, seed)
    return fuzz_guided(options.seconds, seed, options.corpus)


if __name__ == "__main__":
    sys.exit(main())
