"""The commands of the broker, byte for byte: what kdbus' own tests asserted, and what they left out.

Every test drives the broker through the client in `support.kdbus`, which knows the interface from its
description and not from the broker's sources. The groups are those of kdbus' selftests, one module each.
"""
