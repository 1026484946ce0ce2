"""Somebody who has made a synchronous call, the one who was asked, and all that can happen to the two."""

from __future__ import annotations

from native_mail import Waiter
from native_world import SECOND, World


class Scene:
    """A caller that waits for the reply to #7, which is #8."""

    def __init__(self, world: World, *, is_read: bool = False) -> None:
        self.world = world
        self.caller, self.replier = world.connect_many(2)
        self.waiter = world.call(self.caller, self.replier, 7)
        if is_read:
            assert world.read(self.replier) == ["#7"]

    def answer(self) -> None:
        self.world.reply(self.replier, self.caller, 7, 8)

    def die(self) -> None:
        self.world.bus.disconnect(self.replier)

    def leave(self) -> None:
        self.world.read(self.replier)
        self.world.bus.byebye(self.replier)

    def throw_away(self) -> None:
        self.world.drop(self.replier)

    def let_pass(self) -> None:
        self.world.pass_time()

    def cancel(self) -> None:
        self.world.bus.cancel(self.caller, 7)

    def cancel_one(self) -> None:
        assert self.waiter.call is not None
        self.waiter.call.cancel()

    def hang_up(self) -> None:
        self.world.bus.byebye(self.caller)

    def break_off(self) -> None:
        self.world.bus.disconnect(self.caller)

    def interrupt(self) -> None:
        self.waiter.interrupt()
        assert self.waiter.outcomes == ["EINTR"]

    def call_again(self, wait: int = SECOND) -> Waiter:
        return self.world.call(self.caller, self.replier, 7, wait=wait)
