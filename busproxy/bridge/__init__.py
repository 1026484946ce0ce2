"""Between legacy clients and native connections: everything that is about messages of the other kind.

`crossing` is where a message goes from one kind to the other, `native_message` reads what natives send,
`flows` is the fast path to them, `surrogates` are serials for cookies that are none.  Nothing of this is
imported before the first native needs it.
"""

from busproxy.bridge.crossing import Bridge

__all__ = ["Bridge"]
