"""Activation: services that the bus starts when somebody sends to their name.

`service_files` reads what is activatable; it knows files and nothing of buses or processes. Starting a
service, waiting for its name and giving up on it belong to the other modules of this package.

Import what is needed from the modules themselves; this package imports none of them.
"""
