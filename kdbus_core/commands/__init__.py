"""Commands as bytes: how each is read, and how it is performed on a connection.

`forms` says what every command looks like and reads any of them; `identities`
and `messages` read the items that need more than that; `connected` performs
the commands of a connection, `send` the one that may have to wait.  What a
handle is and which commands it takes is in `kdbus_core.handle`.
"""
