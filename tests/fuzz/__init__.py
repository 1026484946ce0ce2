"""Fuzzers: `python -m tests.fuzz.fuzz_wire --seconds N`; not part of the normal run."""
