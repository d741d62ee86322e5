"""To be imported before the subscriber: it waits longer for recovery than by default.

A busy machine may take seconds to start recovery again; what is to be shown is that nothing is lost by that.
"""

from tickerplant import limits

limits.SESSION_FINISH_NS = 15_000_000_000
limits.REPAIR_GIVE_UP_NS = 20_000_000_000
