"""Side-by-side measurement of message buses: `python -m bench`.

One run starts every bus that is there (dbus-daemon, dbus-broker, busproxyd) on a private socket with the same
open configuration, puts the same load on each of them in turn, and prints rates, latencies, the bus's CPU
time for each operation, and ratios between the buses.

Modules, each importing only those before it:
`messages` builds message bytes · `processes` reads clocks and memory of processes · `client` connects and
prepares (before the clock starts) · `frames` counts what comes back · `load` holds the loops that run while
the clock runs · `launch_broker` is the program that becomes dbus-broker's launcher · `buses` starts and ends
buses · `scenarios` says what load is put on a bus and measures it · `report` turns samples into tables,
ratios and JSON.

Nothing of these imports the project's packages: a bus is measured from outside, through its socket, whoever
wrote it.

`python -m bench.broker` is another program: it measures the broker alone, without sockets, through its typed
API and its command bytes (`broker_world` makes the scene, `broker_cases` what is done in it).
"""
