"""A plant with its clock and a strict subscriber, driven input by input."""

from subscriber_model import SubscriberModel

from tickerplant.core.messages import StaleReason
from tickerplant.core.plant import Plant

T0 = 10**18
MS = 1_000_000
SECOND = 1_000_000_000


class PlantBed:
    """A plant, its clock and a subscriber; every method is one input that ends in a flush."""

    def __init__(self, **options):
        self.now_ns = T0
        self.plant = Plant(7, self.now_ns, **options)
        self.subscriber = SubscriberModel()

    def flush(self):
        """Ends the input; returns the messages."""
        return self.subscriber.receive(self.plant.flush(self.now_ns))

    def connect(self):
        """The upstream is complete."""
        self.plant.begin_input(self.now_ns)
        self.plant.set_upstream(connections_missing=False, discovered=True)
        return self.flush()

    def open(self, *tickers):
        """Chosen markets."""
        self.plant.begin_input(self.now_ns)
        return [self.plant.open_book(ticker) for ticker in tickers]

    def snapshot(self, entry, bids=((3300, 100),), asks=((3500, 200),)):
        """A snapshot frame."""
        self.plant.begin_input(self.now_ns)
        self.plant.apply_snapshot(entry, bids, asks)
        return self.flush()

    def delta(self, entry, side, price_e4, delta_e2):
        """A delta frame."""
        self.plant.begin_input(self.now_ns)
        self.plant.apply_delta(entry, side, price_e4, delta_e2, 5)
        return self.flush()

    def stale(self, entry, reason=StaleReason.SEQUENCE_GAP):
        """A fault."""
        self.plant.begin_input(self.now_ns)
        self.plant.mark_stale(entry, reason)
        return self.flush()

    def close(self, entry):
        """The market's book ends."""
        self.plant.begin_input(self.now_ns)
        self.plant.close_book(entry)
        return self.flush()

    def begin_session(self):
        """Over to the next session, as the shell does it; returns the first messages of it."""
        self.flush()
        self.subscriber.receive(self.plant.packets.ends_of_session(self.now_ns))
        self.plant.begin_session(self.plant.session + 1, self.now_ns)
        self.subscriber.begin_session()
        return self.flush()

    def timer(self):
        """Whatever is due."""
        return self.subscriber.receive(self.plant.handle_timer(self.now_ns))

    @property
    def phases(self):
        """Feed states told so far."""
        return self.subscriber.phases


def kinds(messages):
    """Types of messages."""
    return [type(message) for message in messages]
