"""The answer to a stranger's request that one of our clients does not take.

On an embedded bus the sender of a message is told at once when it cannot be delivered.  Here it has been told
that it was: the message lay in a pool of the broker's until we found that the client has no room for it, or
that it is no D-Bus message.  A request then gets an error as its reply, in the client's name, for that is the
connection it was sent to; of anything else nobody waits for an answer.  The watcher is on the bus too, and
answers whoever calls it that nobody is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from busproxy.errno_names import Refused, send_error
from busproxy.remarshal import build_gvariant
from busproxy.wire.gvariant import encode
from busproxy.wire.header import NO_REPLY_EXPECTED, MessageType
from kdbus_core.message import Message, Vec

if TYPE_CHECKING:
    from kdbus_core.errors import KdbusError

_PREFIX = ":1."
_COOKIE = (1 << 32) - 1  # nobody answers an error, so it need not be anybody's own


def build_refusal(request: Message, sender: int, receiver: int, error: KdbusError) -> Message:
    """What the connection `receiver` answers to a request of `sender` that it cannot be given."""
    refused = Refused(
        type=MessageType.METHOD_CALL,
        sender=f"{_PREFIX}{sender}",
        destination=request.dst_name or f"{_PREFIX}{receiver}",
        receiver=f"{_PREFIX}{receiver}",
    )
    name, text = send_error(error, refused)
    return _build(sender, request.cookie, name, text)


def build_no_reply(cookie: int, requester: int) -> Message:
    """What a client that goes answers to a request of `requester`."""
    text = "Message recipient disconnected from message bus without replying"
    return _build(requester, cookie, "org.freedesktop.DBus.Error.NoReply", text)


def _build(requester: int, reply_cookie: int, name: str, text: str) -> Message:
    parts = build_gvariant(
        MessageType.ERROR,
        _COOKIE,
        flags=NO_REPLY_EXPECTED,
        error_name=name,
        destination=f"{_PREFIX}{requester}",
        reply_cookie=reply_cookie,
        signature="s",
        body=encode("s", (text,)),
    )
    return Message([Vec(b"".join(parts))], dst_id=requester, cookie=_COOKIE, cookie_reply=reply_cookie)
