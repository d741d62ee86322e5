"""To be imported before the subscriber: it waits longer for recovery than by default.

A busy machine may take many seconds to start recovery again, and what was not repaired by then would be a gap; what is
to be shown is that nothing is lost on the way to it.
"""

from tickerplant import limits

limits.SESSION_FINISH_NS = 50_000_000_000
limits.REPAIR_GIVE_UP_NS = 60_000_000_000
