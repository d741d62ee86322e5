"""A plant, recovery and a subscriber in one process on a virtual clock, and a network between them that is seeded.

The plant's course is made beforehand. Everything that happens is an event in a heap; the subscriber is the real
arbiter, recovery client, books and quotes.
"""

import heapq
import random
from dataclasses import dataclass, field

from plant_course import MS, SECOND
from recovery_in_process import RecoveryModel

from tickerplant.core.messages import Stream
from tickerplant_subscriber.admission import Admission
from tickerplant_subscriber.arbiter import Arbiter
from tickerplant_subscriber.dispatch import Tables
from tickerplant_subscriber.events import UNKNOWN_SEQ, Event, Gap
from tickerplant_subscriber.filters import TickerFilter
from tickerplant_subscriber.recovery_actions import Close, Connect, SendDatagram, Write
from tickerplant_subscriber.recovery_client import RecoveryClient

ALL = tuple(Stream)
LATENCY_NS = 40_000
BURST_MAX_NS = 20 * MS
AT_ONCE_MAX = 20_000
"""Events without any passing of time: more means that a timer is due again as soon as it was handled."""
CALM_AFTER_NS = 500 * MS
"""After the last message nothing is lost any more: three lost heartbeats in a row would be a dead stream at the end."""
KERNEL_DATAGRAMS = 400
"""What a socket holds while the subscriber does not read."""


@dataclass
class Faults:
    """Shares are of the datagrams of a line, of UDP requests and of replies; windows are (from, to) after the start."""

    loss: float = 0.0
    burst: float = 0.0
    """Share lost in bursts of about ten, none longer than `BURST_MAX_NS`."""
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    line_a_dead: tuple = ()
    blackout: tuple = ()
    """Nothing passes, neither multicast nor to or from recovery."""
    stall: tuple = ()
    """The subscriber does not run; its sockets overflow."""
    recovery_down: tuple = ()
    silent: tuple = ()
    """(stream, since when): nothing more passes on its groups."""
    line_count: int = 2


@dataclass
class Line:
    """A path with its own luck."""

    draw: random.Random
    in_burst: bool = False
    burst_end_ns: int = 0


@dataclass
class Seen:
    """What the subscriber's user got."""

    messages: dict = field(default_factory=dict)
    events: list = field(default_factory=list)
    delivered_ns: dict = field(default_factory=dict)


class Simulation:
    """One run; `check` says whether it was as it has to be."""

    def __init__(
        self,
        course,
        seed,
        faults,
        *,
        streams=ALL,
        join_after_ns=None,
        key_ring=None,
        lag_ns=0,
        with_recovery=True,
        resume=None,
        is_flowing=False,
    ):
        self.course = course
        self.faults = faults
        self.now_ns = course.sends[0][0] - 50 * MS
        self.start_ns = course.sends[0][0]
        self.seen = Seen()
        self.lost_on_the_way = 0
        """Copies of datagrams that never came, or damaged."""
        self.watch = lambda _event, _now_ns: None
        self.recovery = RecoveryModel(key_ring, lag_ns)
        self._heap = []
        self._at_once = 0
        self._count = 0
        self._random = random.Random(seed)
        self._lines = [Line(random.Random(self._random.random())) for _ in range(faults.line_count)]
        self._udp = Line(random.Random(self._random.random()))
        self._kernel = {}
        self._connections = {}
        self._wake_ns = None
        self._is_stalled = False
        self._is_joined = join_after_ns is None
        self._streams = streams
        self.tables = Tables(streams, TickerFilter(["*"]), self._tell)
        started_ns = self.now_ns if join_after_ns is None else self.start_ns + join_after_ns
        self.arbiter = Arbiter(
            streams,
            self._deliver,
            self._take_event,
            started_ns=started_ns,
            line_count=faults.line_count,
            admission=Admission(key_ring),
            take_image=self._take_image,
        )
        self.arbiter.is_flowing = is_flowing
        self.tables.heal_with(self.arbiter.heal)
        self.images = []
        self.client = None
        if with_recovery:
            self.client = RecoveryClient(self.arbiter, 1, self._random.randbytes)
        if join_after_ns is not None:
            self._at(started_ns, self._join, resume)
        for index, (time_ns, _, _) in enumerate(course.sends):
            self._at(time_ns, self._send, index)
        for window, begin, end in (
            (faults.stall, self._begin_stall, self._end_stall),
            (faults.recovery_down, self._stop_recovery, self._start_recovery),
        ):
            if window:
                self._at(self.start_ns + window[0], begin)
                self._at(self.start_ns + window[1], end)

    # --- clock ------------------------------------------------------------------------------------

    def _at(self, time_ns, call, *arguments):
        self._count += 1
        heapq.heappush(self._heap, (time_ns, self._count, call, arguments))

    def run(self, after_ns=SECOND):
        """To the end of the course and some time beyond."""
        self.run_until(self.course.end_ns + after_ns)

    def run_until(self, end_ns):
        """As long as something happens before that."""
        while self._heap and self._heap[0][0] <= end_ns:
            time_ns, _, call, arguments = heapq.heappop(self._heap)
            self._at_once = self._at_once + 1 if time_ns == self.now_ns else 0
            assert self._at_once < AT_ONCE_MAX, f"{call.__name__} again and again"
            self.now_ns = time_ns
            call(*arguments)

    def _in(self, window):
        return bool(window) and window[0] <= self.now_ns - self.start_ns < window[1]

    # --- plant and multicast ----------------------------------------------------------------------

    def _send(self, index):
        _, is_sent, datagrams = self.course.sends[index]
        for _, datagram in datagrams:
            self.recovery.append(datagram, self.now_ns)
        if not is_sent or not self._is_joined:
            return
        arrivals = []
        for number, line in enumerate(self._lines):
            dark = self._in(self.faults.blackout) or (
                number == 0 and self._in(self.faults.line_a_dead)
            )
            for stream, datagram in datagrams:
                if dark or stream not in self._streams or self._is_silent(stream):
                    continue
                for delay_ns, copy in self._fates(line, datagram):
                    if delay_ns:
                        late = [(number, stream, copy)]
                        self._at(self.now_ns + LATENCY_NS + delay_ns, self._arrive, late)
                    else:
                        arrivals.append((number, stream, copy))
        if arrivals:
            self._at(self.now_ns + LATENCY_NS, self._arrive, arrivals)

    def _is_silent(self, stream):
        silent = self.faults.silent
        return bool(silent) and stream == silent[0] and self.now_ns >= self.start_ns + silent[1]

    def _fates(self, line, datagram):
        """What becomes of a datagram: (extra delay, bytes) of each copy that arrives."""
        faults, draw = self.faults, line.draw
        if self.now_ns > self.course.last_data_ns + CALM_AFTER_NS:
            return ((0, datagram),)
        if faults.burst:
            if line.in_burst and self.now_ns > line.burst_end_ns:
                line.in_burst = False
            if draw.random() < (0.1 if line.in_burst else faults.burst / 10):
                line.in_burst = not line.in_burst
                line.burst_end_ns = self.now_ns + BURST_MAX_NS
            if line.in_burst:
                self.lost_on_the_way += 1
                return ()
        if faults.loss and draw.random() < faults.loss:
            self.lost_on_the_way += 1
            return ()
        delay_ns = 0
        if faults.reorder and draw.random() < faults.reorder:
            delay_ns = draw.randrange(3 * MS)
        if faults.corrupt and draw.random() < faults.corrupt:
            datagram = self._corrupt(draw, datagram)
            self.lost_on_the_way += 1
        if faults.duplicate and draw.random() < faults.duplicate:
            return ((delay_ns, datagram), (delay_ns + draw.randrange(2 * MS), datagram))
        return ((delay_ns, datagram),)

    def _corrupt(self, draw, datagram):
        """Any bit where datagrams are signed; else what a length or a magic gives away."""
        kind = draw.randrange(3)
        if self.arbiter.admission.key_ring is not None and kind:
            changed = bytearray(datagram)
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            return bytes(changed)
        return datagram[: draw.randrange(len(datagram))] if kind else b"\0" + datagram[1:]

    # --- the subscriber's host --------------------------------------------------------------------

    def _join(self, resume):
        self._is_joined = True
        if resume is not None:
            self.arbiter.resume(resume, self.now_ns)
            self._settle()

    def _arrive(self, arrivals):
        if self._is_stalled:
            for number, stream, datagram in arrivals:
                queue = self._kernel.setdefault((number, stream), [])
                if len(queue) < KERNEL_DATAGRAMS:
                    queue.append(datagram)
            return
        for number, _, datagram in arrivals:
            self.arbiter.receive(number, datagram, self.now_ns)
        self._settle()

    def _begin_stall(self):
        self._is_stalled = True

    def _end_stall(self):
        self._is_stalled = False
        for (number, _), queue in self._kernel.items():
            for datagram in queue:
                self.arbiter.receive(number, datagram, self.now_ns)
        self._kernel.clear()
        self.arbiter.handle_timer(self.now_ns)
        self._settle()

    def _settle(self):
        """Performs what the client wants and arms the timer."""
        if self.client is not None:
            for action in self.client.take_actions():
                self._perform(action)
        due_ns = self.arbiter.next_deadline_ns()
        if due_ns is None:
            return
        due_ns = max(due_ns, self.now_ns)
        if self._wake_ns is None or due_ns < self._wake_ns:
            self._wake_ns = due_ns
            self._at(due_ns, self._on_timer, due_ns)

    def _on_timer(self, due_ns):
        if self._wake_ns == due_ns:
            self._wake_ns = None
        if self._is_stalled:
            return
        self.arbiter.handle_timer(self.now_ns)
        self._settle()

    # --- between subscriber and recovery ----------------------------------------------------------

    def _perform(self, action):
        dark = self._in(self.faults.blackout)
        if isinstance(action, SendDatagram):
            if not dark:
                for delay_ns, datagram in self._fates(self._udp, action.datagram):
                    self._at(self.now_ns + LATENCY_NS + delay_ns, self._serve_datagram, datagram)
        elif isinstance(action, Connect):
            if not dark:
                self._at(self.now_ns + LATENCY_NS, self._accept, action.connection)
        elif isinstance(action, Write):
            self._at(self.now_ns + LATENCY_NS, self._serve, action.connection, action.data)
        elif isinstance(action, Close):
            self._connections.pop(action.connection, None)

    def _serve_datagram(self, datagram):
        if not self.recovery.is_up:
            self._at(self.now_ns + LATENCY_NS, self._refuse_datagram)
            return
        for answer in self.recovery.receive_datagram(datagram, self.now_ns):
            for delay_ns, copy in self._fates(self._udp, answer):
                self._at(self.now_ns + LATENCY_NS + delay_ns, self._take_datagram, copy)

    def _refuse_datagram(self):
        self.client.note_refused(0, self.now_ns)
        self._settle()

    def _take_datagram(self, datagram):
        if self._is_stalled or self._in(self.faults.blackout):
            return
        self.client.receive_datagram(0, datagram, self.now_ns)
        self._settle()

    def _accept(self, number):
        if not self.recovery.is_up:
            self._at(self.now_ns + LATENCY_NS, self._close, number)
            return

        def write(data):
            self._at(self.now_ns + LATENCY_NS, self._deliver_bytes, number, data)

        self._connections[number] = self.recovery.accept(self.now_ns, write)
        self._at(self.now_ns + LATENCY_NS, self._connect, number)

    def _connect(self, number):
        self.client.connected(number, self.now_ns)
        self._settle()

    def _serve(self, number, data):
        connection = self._connections.get(number)
        if connection is None or self._delayed(self._serve, number, data):
            return
        connection.receive(data, self.now_ns)
        self._poll(number, connection)

    def _poll(self, number, connection):
        if self._connections.get(number) is not connection:
            return
        connection.poll(self.now_ns)
        if not connection.is_over:
            self._at(self.now_ns + MS, self._poll, number, connection)
        else:
            self._at(self.now_ns + 2 * LATENCY_NS, self._close, number)

    def _delayed(self, call, *arguments):
        """TCP loses nothing: what cannot pass now passes later."""
        blocked = self._in(self.faults.blackout) or self._is_stalled
        if blocked:
            self._at(self.now_ns + 20 * MS, call, *arguments)
        return blocked

    def _deliver_bytes(self, number, data):
        if self._delayed(self._deliver_bytes, number, data):
            return
        self.client.received(number, data, self.now_ns)
        self._settle()

    def _close(self, number):
        if self._delayed(self._close, number):
            return
        self._connections.pop(number, None)
        self.client.closed(number, self.now_ns)
        self._settle()

    def _stop_recovery(self):
        self.recovery.is_up = False
        for number in tuple(self._connections):
            self._close(number)

    def _start_recovery(self):
        self.recovery.is_up = True
        self.recovery.read(self.now_ns)

    # --- what comes out ---------------------------------------------------------------------------

    def _deliver(self, state, first_seq, messages, _sent_ns):
        kept = self.seen.messages.setdefault((state.session, int(state.stream)), [])
        kept += [(first_seq + index, message) for index, message in enumerate(messages)]
        if state.stream is Stream.DELTA and self.tables.mirror is not None:
            self.tables.mirror.receive(state, messages)
        elif state.stream is Stream.BBO and self.tables.quotes is not None:
            self.tables.quotes.receive(state, messages)

    def _take_image(self, state, messages, books):
        count = len(messages) + len(books)
        self.images.append((state.stream, state.session, state.expected, count))
        self.tables.take_image(state, messages, books)

    def _take_event(self, event):
        self.tables.take_event(event)

    def _tell(self, event: Event):
        self.seen.events.append(event)
        self.watch(event, self.now_ns)

    def gaps(self):
        return [event for event in self.seen.events if isinstance(event, Gap)]

    # --- verdict ----------------------------------------------------------------------------------

    def check(self, *, gaps_allowed=lambda _gap: False):
        """Each message once, in order, as it was published; every book and quote right and LIVE."""
        for gap in self.gaps():
            assert gaps_allowed(gap), gap
        self.check_streams()
        self.check_books()
        for state in self.arbiter.states():
            assert not state.behind, (state.stream, state.session)
            assert not state.holes, (state.stream, state.holes)

    def check_streams(self):
        """What was published is delivered once, in order, or in one gap."""
        for (session, stream), published in self.course.messages.items():
            if stream in self._streams:
                self._check_stream(session, stream, published)
        for session, stream in self.seen.messages:
            assert (session, stream) in self.course.messages

    def _check_stream(self, session, stream, published):
        got = self.seen.messages.get((session, stream), [])
        covered = [(seq, seq) for seq, _ in got]
        covered += [
            (gap.from_seq, len(published) if gap.to_seq == UNKNOWN_SEQ else gap.to_seq)
            for gap in self.gaps()
            if (gap.session, gap.stream) == (session, stream)
        ]
        covered.sort()
        if not covered and session < self.arbiter.plants[1, 0].session:
            # Over before the subscriber came.
            return
        next_seq = 1
        for from_seq, to_seq in covered:
            assert from_seq == next_seq, (session, stream, from_seq, next_seq)
            next_seq = to_seq + 1
        assert next_seq == len(published) + 1, (session, stream, next_seq, len(published))
        seqs = [seq for seq, _ in got]
        assert seqs == sorted(seqs), "misordered"
        assert all(message == published[seq - 1] for seq, message in got)

    def check_books(self):
        """As the plant has them at the end of the course."""
        mirror, quotes = self.tables.mirror, self.tables.quotes
        if mirror is not None:
            for ticker, checksum in self.course.checksums.items():
                view = mirror.view(ticker)
                assert view is not None
                assert view.live, view
                assert view.checksum() == checksum
            assert mirror.mismatches == 0
        if quotes is not None:
            for ticker, bbo in self.course.quotes.items():
                last = quotes.last(ticker)
                assert last is not None
                assert last.state == 1, last
                assert (last.bid_e4, last.bid_size_e2, last.ask_e4, last.ask_size_e2) == bbo
