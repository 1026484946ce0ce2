"""What the tests of real programs stand on: private buses, child processes, a raw client, comparable results.

Nothing here imports the packages under test: every module treats `dbus-daemon` and `busproxyd` alike, as a
program with a socket, so that a fault of ours cannot hide in the tests' own tools.

- `bus` starts and ends buses;
- `programs` knows which programs there are, runs them on a bus and reads what they print;
- `normalise` takes out what two runs may differ in (unique names, pids, ids, times);
- `raw` is a client of its own, down to the byte;
- `services` starts the services (`service_*.py`) that the programs talk to.
"""
