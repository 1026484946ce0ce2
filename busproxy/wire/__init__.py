"""The classic D-Bus wire format as pure functions between bytes and values.

Nothing here reads a socket, a clock or a file: every function gets bytes and gives back values, offsets or
more bytes. The verdict on a message (accepted or broken) is libdbus' verdict, also where the specification
would say otherwise; each such place says so.

Import what is needed from the modules themselves; this package imports none of them.
"""
