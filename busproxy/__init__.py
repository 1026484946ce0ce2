"""The compatibility proxy: classic D-Bus clients in front of a `kdbus_core` bus.

Bytes of a client are cut into messages (`flows`), which go where the broker
says (`router`) or to the object that the proxy answers for (`driver`).  One
`peer` is one client's life; `transport` is the only part that does I/O.
"""

__version__ = "0.1.0"
