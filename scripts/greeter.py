"""A D-Bus object to try things on, made with dbus-next: it greets whoever calls it, and tells everybody.

Annotations of dbus-next are D-Bus signatures, which no Python type checker can read.
"""

# mypy: ignore-errors
# ruff: noqa: F821

from dbus_next.service import ServiceInterface, method, signal

NAME = "com.example.Greeter"
PATH = "/com/example/Greeter"
INTERFACE = "com.example.Greeter"


class Greeter(ServiceInterface):
    """One method, `Greet`, and one signal, `Greeted`."""

    def __init__(self):
        super().__init__(INTERFACE)

    @method()
    def Greet(self, who: "s") -> "s":
        self.Greeted(who)
        return f"Hello, {who}!"

    @signal()
    def Greeted(self, who) -> "s":
        return who
