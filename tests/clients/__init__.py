"""Real clients, unchanged, on dbus-daemon and on `busproxyd`: the same scenario, the same result.

Each module runs one program or library on both buses and compares; `known_differences` lists what differs on
purpose. BUSES=dbus-daemon (or busproxyd) restricts a run to one bus.
"""
