"""The proxy's contact with the operating system: sockets that listen, sockets of peers, the service manager.

`listeners` opens the addresses of the bus and owns their sockets and socket files; `systemd` takes over
sockets that were opened before the start and tells the service manager how the daemon is doing. Everything
else of the proxy gets bytes, credentials and fds from here and never calls a socket itself.
"""
