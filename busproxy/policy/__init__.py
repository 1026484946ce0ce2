"""What the administrator wrote, and what it means.

A bus is described by XML files in dbus-daemon's format. `loader` is the only module here that touches the
machine: it reads those files and gives a `config.BusConfig`, or raises one `ConfigError` that names file,
line and reason; a half-read configuration never leaves it. `config` is the model: values with the place they
came from, so that every later message can say which line decided, and the verdicts that need nothing else.
"""
