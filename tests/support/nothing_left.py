"""What a bus with clients and natives holds when everybody has gone: nothing.

Whatever is charged, tracked, held, matched or open is given back by whoever put it there; this looks at the
places where something would be left.
"""

from __future__ import annotations

from support.neighbour import Neighbour
from support.proxy import World


def assert_nothing_waits(world: World, *natives: Neighbour) -> None:
    """Nothing is queued for these natives, nobody is charged there, and no request of theirs is open."""
    for native in natives:
        connection = native.connection
        inbox = connection.inbox
        assert inbox is not None
        assert len(inbox) == 0
        assert not inbox._apart
        assert inbox.reserved == 0
        assert not any(slice_.is_held for slice_ in inbox.pool.slices())
        assert not connection.quota.shares
        assert connection.quota.total_memory == connection.quota.total_fds == 0
        assert not connection.calls
        assert connection.outstanding == 0
    for peer in world.router.peers:
        assert not peer.quota.shares
        assert peer.quota.total_memory == peer.quota.total_fds == 0
        assert peer.connection is None or peer.connection.outstanding == 0


def end_in_peace(world: World, *natives: Neighbour) -> None:
    """Everybody leaves, and what was there because of them goes with them."""
    for client in world.clients.values():
        client.close()
    world.settle()
    for native in natives:
        world.bus.disconnect(native.connection)
    world.activation.load({})
    world.settle()
    bus = world.bus
    assert not world.router.peers
    assert not bus.connections
    assert not bus.monitors
    assert len(bus.names) == 0
    assert len(bus.policy) == 0
    assert not bus.matches
    assert not any((bus.subscriptions._subscribers, bus.subscriptions.has_listeners))
    assert bus.replies.next_deadline() is None
    assert bus.order.is_idle
    assert not bus.delivery._handed
    assert bus.delivery.seen is None
    assert world.router.bridge._shown is None
    assert not bus.kernel_user.connections
    assert not bus.kernel_user.charged
    assert not world.domain._users
    assert_nothing_waits(world, *natives)
    for native in natives:
        assert not native.connection.requests
        assert not native.connection.duties
        assert not native.connection.matches
