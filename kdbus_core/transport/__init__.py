"""The broker's only I/O: nodes as sockets, pools in shared memory, who is behind a socket, the client.

`server` opens a domain's nodes as a directory of sockets; `client` is for programs that use one.  What
goes over such a socket is in `protocol` and in `docs/native-protocol.md`.
"""
