"""Everything between the network and what a user wrote: sockets, arbiter, recovery, put together from the options."""

import os
from collections.abc import Callable, Collection

from tickerplant.core.messages import Stream
from tickerplant.errors import ConfigurationError
from tickerplant.steady_clock import SteadyClock
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.delivery import DeliverMessages, TakeImage, Tell
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.mirror import Mirror
from tickerplant_subscriber.options import ReceiverOptions
from tickerplant_subscriber.position import Position
from tickerplant_subscriber.receiver import Receiver
from tickerplant_subscriber.recovery_client import RecoveryClient
from tickerplant_subscriber.stats import SubscriberStats, collect_stats


class Reception:
    """One subscription's way in; `deliver`, `tell` and `take_image` are called by the arbiter."""

    def __init__(
        self,
        options: ReceiverOptions,
        streams: Collection[Stream],
        wanted: TickerFilter,
        *,
        deliver: DeliverMessages,
        tell: Tell,
        take_image: TakeImage | None,
        fail: Callable[[Exception], None],
        resume: Position | None = None,
        is_skipping: bool = False,
        is_flowing: bool = False,
        is_from_beginning: bool = False,
    ) -> None:
        """`is_skipping`: what the kernel dropped is not fetched. `is_flowing`: trades, quotes and tickers are not held.

        `take_image` None: every message counts, and no snapshot is asked for. `is_from_beginning`: what a session had
        before we joined is fetched.

        Raises `ConfigurationError`, `CredentialsError`.
        """
        self.clock = SteadyClock()
        addresses = options.recovery_addresses
        self._receiver = Receiver(options, streams, fail, self.clock)
        self._resume = resume
        self.arbiter = Arbiter(
            streams,
            deliver,
            tell,
            started_ns=self.clock.now_ns(),
            line_count=len(options.lines),
            admission=self._receiver.admission,
            take_image=take_image if addresses else None,
        )
        self.arbiter.is_from_beginning = is_from_beginning
        self.arbiter.is_flowing = is_flowing
        self.client: RecoveryClient | None = None
        if addresses:
            self.client = RecoveryClient(
                self.arbiter,
                len(addresses),
                os.urandom,
                tickers=wanted.plain_tickers(),
                is_skipping=is_skipping,
            )
        elif resume is not None:
            raise ConfigurationError("a position needs recovery to go on from: name its address")

    def open(self) -> None:
        """Joins the groups. Raises `NetworkSetupError`, with nothing left open."""
        self._receiver.open(self.client)

    def start(self) -> None:
        """Begins to read, on the running loop."""
        self._receiver.start(self.arbiter, self._resume)

    def close(self) -> None:
        """Leaves the groups; may be called twice."""
        self._receiver.close()

    def pause(self) -> None:
        """Nothing is read until `go_on`: the kernel keeps what it has room for."""
        self._receiver.pause()

    def go_on(self) -> None:
        """Ends `pause`."""
        self._receiver.go_on()

    def stats(
        self, mirror: Mirror | None, *, messages_dropped: int = 0, callback_errors: int = 0
    ) -> SubscriberStats:
        """The counts so far."""
        return collect_stats(
            self.arbiter,
            mirror,
            socket_errors=self._receiver.socket_errors,
            receive_buffer_bytes=self._receiver.receive_buffer_bytes,
            messages_dropped=messages_dropped,
            callback_errors=callback_errors,
            client=self.client,
            recovery_socket_errors=self._receiver.recovery_socket_errors,
        )
