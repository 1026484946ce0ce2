"""Split mode: the proxy in front of a bus that another process hosts.

`RemoteBus` is that bus, for the same router, driver and activation that run on an embedded one.
"""

from busproxy.core.gone import EXIT_STATUS, BrokerGone
from busproxy.core.remote import RemoteBus

__all__ = ["EXIT_STATUS", "BrokerGone", "RemoteBus"]
