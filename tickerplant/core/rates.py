"""Byte rates of many clients, with a bound on how many are told apart. Pure."""

from collections.abc import Hashable

from tickerplant.limits import RECOVERY_BURST_NS, RECOVERY_CLIENTS_MAX

_SECOND_NS = 1_000_000_000


class Rate:
    """Units a second: `paid_until_ns` is the time up to which they are used. What was saved up is bounded."""

    __slots__ = ("_burst_ns", "_paid_until_ns", "_unit_ns_e6")

    def __init__(self, per_second: int, burst_ns: int = RECOVERY_BURST_NS) -> None:
        """At least 1 a second."""
        self._unit_ns_e6 = _SECOND_NS * 1_000_000 // per_second
        self._burst_ns = burst_ns
        self._paid_until_ns = 0

    def wait_ns(self, now_ns: int) -> int:
        """How long until more may be used; 0: now."""
        return max(0, self._paid_until_ns - now_ns)

    def use(self, units: int, now_ns: int) -> None:
        """Count them; what is beyond the rate has to be waited for before the next use."""
        paid_until_ns = max(self._paid_until_ns, now_ns - self._burst_ns)
        self._paid_until_ns = paid_until_ns + units * self._unit_ns_e6 // 1_000_000

    def is_idle(self, now_ns: int) -> bool:
        """Whether all that can be saved up is saved up, so that a new one would be the same."""
        return self._paid_until_ns <= now_ns - self._burst_ns


class ClientRates:
    """One rate for each client and one for all of them together."""

    def __init__(
        self, per_client: int, total: int, clients_max: int = RECOVERY_CLIENTS_MAX
    ) -> None:
        """Units a second."""
        self._per_client = per_client
        self._clients_max = clients_max
        self._total = Rate(total)
        self._shared = Rate(per_client)
        self._clients: dict[Hashable, Rate] = {}

    def __len__(self) -> int:
        """Clients told apart now."""
        return len(self._clients)

    def wait_ns(self, client: Hashable, now_ns: int) -> int:
        """How long until `client` may use more; 0: now."""
        return max(self._total.wait_ns(now_ns), self._rate_of(client, now_ns).wait_ns(now_ns))

    def use(self, client: Hashable, units: int, now_ns: int) -> None:
        """Count them."""
        self._total.use(units, now_ns)
        self._rate_of(client, now_ns).use(units, now_ns)

    def _rate_of(self, client: Hashable, now_ns: int) -> Rate:
        rate = self._clients.get(client)
        if rate is not None:
            return rate
        if len(self._clients) >= self._clients_max:
            idle = [key for key, known in self._clients.items() if known.is_idle(now_ns)]
            for key in idle:
                del self._clients[key]
            if not idle:
                return self._shared
        rate = self._clients[client] = Rate(self._per_client)
        return rate
