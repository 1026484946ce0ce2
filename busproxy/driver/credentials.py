"""Who a connection is: GetConnectionCredentials and its older relatives.

The answers are the broker's CONN_INFO, which for a legacy client are the
client's own connection-time credentials.  What is not known is left out.
"""

from __future__ import annotations

import os
from typing import Any

from busproxy.driver.call import Call, Method, MethodError
from busproxy.driver.names import find_owner
from busproxy.driver.outbox import DRIVER_NAME
from busproxy.router import is_client, peer_of
from busproxy.transport.fds import FdSet
from kdbus_core.connection import Connection
from kdbus_core.metadata import Credentials


def _owner(call: Call, name: str, what: str) -> Connection | None:
    """Who is asked about; None for the bus itself."""
    if name == DRIVER_NAME:
        return None
    owner = find_owner(call, name)
    if owner is None:
        raise MethodError("NameHasNoOwner", f"Could not get {what} of name '{name}': no such name")
    return owner


def _credentials(call: Call, name: str, what: str) -> Credentials:
    return _credentials_of(call, _owner(call, name, what))


def _credentials_of(call: Call, owner: Connection | None) -> Credentials:
    if owner is None:
        return Credentials(uid=call.driver.host.uid, pid=call.driver.host.pid)
    return call.driver.router.bus.connection_info(id=owner.id).credentials


def _get_unix_user(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    uid = _credentials(call, name, "UID").uid
    if uid is None:
        raise MethodError("Failed", f"Could not determine UID for '{name}'")
    return (uid,)


def _get_unix_process_id(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    pid = _credentials(call, name, "PID").pid
    if pid is None:
        raise MethodError("UnixProcessIdUnknown", f"Could not determine PID for '{name}'")
    return (pid,)


def _get_selinux_context(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    label = _credentials(call, name, "security context").label
    if label is None or not call.driver.host.has_selinux:
        raise MethodError(
            "SELinuxSecurityContextUnknown", f"Could not determine security context for '{name}'"
        )
    return (label,)


def _get_adt_audit_session_data(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    _credentials(call, name, "audit session data")
    # Solaris only; on Linux there is never any.
    raise MethodError("AdtAuditDataUnknown", f"Could not determine audit session data for '{name}'")


def _get_credentials(call: Call) -> tuple[Any, ...] | None:
    (name,) = call.arguments
    owner = _owner(call, name, "credentials")
    known = _credentials_of(call, owner)
    answer: dict[str, tuple[str, Any]] = {}
    if known.pid is not None:
        answer["ProcessID"] = ("u", known.pid)
    if known.uid is not None:
        answer["UnixUserID"] = ("u", known.uid)
    if known.groups is not None:
        gids = set(known.groups)
        if known.gid is not None:
            gids.add(known.gid)
        answer["UnixGroupIDs"] = ("au", sorted(gids))
    if known.label is not None:
        answer["LinuxSecurityLabel"] = ("ay", known.label + b"\0")
    fds = _pidfd(call, owner, known) if call.peer.unix_fds else None
    if fds is None:
        return (answer,)
    answer["ProcessFD"] = ("h", 0)
    call.driver.outbox.send_reply(call.peer, call.serial, "a{sv}", (answer,), fds)
    fds.release()
    return None


def _pidfd(call: Call, owner: Connection | None, known: Credentials) -> FdSet | None:
    """A descriptor of the owner's process, if there is one; whoever asks is its holder."""
    if owner is not None and not is_client(owner):
        return None if known.pidfd is None else FdSet([os.dup(known.pidfd)])
    fds = call.driver.host.pidfd if owner is None else peer_of(owner).pidfd
    return None if fds is None else fds.hold()


METHODS = (
    Method("GetConnectionUnixUser", "s", "u", _get_unix_user),
    Method("GetConnectionUnixProcessID", "s", "u", _get_unix_process_id),
    Method("GetAdtAuditSessionData", "s", "ay", _get_adt_audit_session_data),
    Method("GetConnectionSELinuxSecurityContext", "s", "ay", _get_selinux_context),
    Method("GetConnectionCredentials", "s", "a{sv}", _get_credentials),
)
