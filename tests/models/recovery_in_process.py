"""Recovery on a virtual clock: the server's own protocol code over a log that is a list, with a lag and restarts."""

from bisect import bisect_right
from collections.abc import Callable

from tickerplant.core.conversation import Conversation, Keys
from tickerplant.core.gap_fill import Found, GapFillServer, mark_retransmitted
from tickerplant.core.keyring import KeyRing
from tickerplant.core.messages import Stream
from tickerplant.core.recovery_state import PlantState
from tickerplant.core.recovery_wire import (
    NONCE_BYTES,
    VERSION,
    GapFill,
    Hello,
    RecoveryCode,
    SessionRange,
    SnapshotEnd,
    SnapshotRequest,
    StreamEnd,
    StreamRequest,
)
from tickerplant.core.snapshot_packets import SnapshotPackets
from tickerplant.core.stream_filter import StreamFilter
from tickerplant.core.wire import Kind, decode_header
from tickerplant.limits import GAP_FILL_BYTES_MAX, GAP_FILL_DATAGRAMS_MAX

TAIL_WAIT_NS = 200_000_000
CHUNK_BYTES = 65_536


class LoggedSession:
    """The datagrams of one session: by stream, and all in the order of the log."""

    def __init__(self):
        self.log = []
        self.seqs = {int(stream): [] for stream in Stream}
        self.datagrams = {int(stream): [] for stream in Stream}
        self.next_seqs = dict.fromkeys(map(int, Stream), 1)
        self.oldest_seqs = dict.fromkeys(map(int, Stream), 1)
        self.final = False

    def append(self, datagram):
        header = decode_header(datagram)
        if header.kind == Kind.HEARTBEAT:
            return
        self.log.append((header, datagram))
        if header.kind == Kind.END_OF_SESSION:
            return
        self.seqs[header.stream].append(header.seq)
        self.datagrams[header.stream].append(datagram)
        self.next_seqs[header.stream] = header.seq + header.message_count

    def cut_before(self, share):
        """Retention took the oldest part: `share` of the datagrams of each stream."""
        for stream, seqs in self.seqs.items():
            kept = int(len(seqs) * share)
            if kept:
                self.oldest_seqs[stream] = (
                    seqs[kept] if kept < len(seqs) else self.next_seqs[stream]
                )


class RecoveryModel:
    """What was logged, read with a lag; `is_up` is False while it is being restarted."""

    def __init__(self, key_ring: KeyRing | None = None, lag_ns: int = 0):
        self.sessions = {}
        self.state = PlantState()
        self.lag_ns = lag_ns
        self.is_up = True
        self.publisher, self.partition = 1, 0
        self._key_ring = key_ring
        self._unread = []
        self._gap_fill = GapFillServer(
            self,
            client_bytes_per_second=10**9,
            total_bytes_per_second=10**9,
            keys=None if key_ring is None else key_ring.keys,
            key_id=0 if key_ring is None else key_ring.signing_key_id,
        )

    def append(self, datagram, now_ns):
        """The plant has logged a datagram; it is read `lag_ns` later."""
        self._unread.append((now_ns + self.lag_ns, datagram))

    def read(self, now_ns):
        """Everything that has come by now."""
        if not self.is_up:
            return
        count = 0
        for due_ns, datagram in self._unread:
            if due_ns > now_ns:
                break
            count += 1
            header = decode_header(datagram)
            session = self.sessions.get(header.session)
            if session is None:
                for other in self.sessions.values():
                    other.final = True
                session = self.sessions[header.session] = LoggedSession()
            session.append(datagram)
            if header.kind == Kind.DATA:
                self.state.receive(header, datagram)
        del self._unread[:count]

    # --- gap fill ---------------------------------------------------------------------------------

    def receive_datagram(self, datagram, now_ns):
        self.read(now_ns)
        return self._gap_fill.receive(datagram, "client", now_ns) if self.is_up else []

    def find(self, request: GapFill) -> Found:
        session = self.sessions.get(request.session)
        if session is None:
            return Found(RecoveryCode.UNKNOWN_SESSION, [])
        stream = request.stream
        oldest, next_seq = session.oldest_seqs[stream], session.next_seqs[stream]
        if request.to_seq < oldest:
            return Found(RecoveryCode.TOO_OLD, [], oldest, next_seq)
        if request.from_seq >= next_seq:
            code = RecoveryCode.NOT_REPAIRABLE if session.final else RecoveryCode.NOT_YET
            return Found(code, [], oldest, next_seq)
        seqs = session.seqs[stream]
        index = bisect_right(seqs, max(request.from_seq, oldest)) - 1
        found, size = [], 0
        while index < len(seqs) and seqs[index] <= request.to_seq:
            datagram = session.datagrams[stream][index]
            size += len(datagram)
            if len(found) == GAP_FILL_DATAGRAMS_MAX or size > GAP_FILL_BYTES_MAX:
                break
            found.append(datagram)
            index += 1
        return Found(RecoveryCode.SERVED, found, oldest, next_seq)

    # --- TCP --------------------------------------------------------------------------------------

    def hello(self):
        return Hello(
            VERSION,
            self.publisher,
            self.partition,
            tuple(
                SessionRange(
                    number,
                    tuple(session.oldest_seqs.items()),
                    tuple(session.next_seqs.items()),
                    session.final,
                )
                for number, session in sorted(self.sessions.items())
            ),
        )

    def accept(self, now_ns, write: Callable[[bytes], None]):
        """A connection; `write` gets what the server sends."""
        return RecoveryConnection(self, self._key_ring, now_ns, write)


class RecoveryConnection:
    """The server's side of one connection; `poll` has to be called while it waits for the log."""

    def __init__(self, model, key_ring, now_ns, write):
        keys = None if key_ring is None else Keys(key_ring.signing_key_id, key_ring.keys)
        nonce = b"" if keys is None else b"s" * NONCE_BYTES
        self._model = model
        self._write = write
        self._talk = Conversation(model.hello, now_ns, nonce=nonce, keys=keys)
        self._give_up_ns = 0
        self._filter = None
        self._sent = 0
        self.is_over = False

    def receive(self, data, now_ns):
        self._model.read(now_ns)
        self._send(self._talk.receive(data))
        if self._talk.request is not None and not self._give_up_ns:
            self._give_up_ns = now_ns + TAIL_WAIT_NS
            if isinstance(self._talk.request, StreamRequest):
                self._begin_stream(self._talk.request)
        self.poll(now_ns)

    def _send(self, data):
        for start in range(0, len(data), CHUNK_BYTES):
            self._write(data[start : start + CHUNK_BYTES])
        self.is_over = self.is_over or self._talk.is_over

    def _reject(self, code):
        self._send(self._talk.reject(code, code.name))
        self.is_over = True

    def _begin_stream(self, request):
        session = self._model.sessions.get(request.session)
        if session is None:
            self._reject(RecoveryCode.UNKNOWN_SESSION)
        elif any(seq < session.oldest_seqs[stream] for stream, seq in request.next_seqs):
            self._reject(RecoveryCode.TOO_OLD)
        else:
            self._filter = StreamFilter(request)

    def poll(self, now_ns):
        """Goes on as far as the log has come."""
        if self.is_over or not self._give_up_ns:
            return
        self._model.read(now_ns)
        if self._filter is not None:
            self._go_on_with_stream(now_ns)
        elif isinstance(self._talk.request, SnapshotRequest):
            self._try_snapshot(self._talk.request, now_ns)

    def _go_on_with_stream(self, now_ns):
        wanted = self._filter
        session = self._model.sessions[self._talk.request.session]
        batch = [
            mark_retransmitted(datagram)
            for header, datagram in session.log[self._sent :]
            if not wanted.is_complete and wanted.take(header)
        ]
        self._sent = len(session.log)
        self._send(self._talk.encode_datagrams(batch))
        if not wanted.is_complete and session.final:
            wanted.is_ended = True
        if wanted.is_complete:
            self._send(self._talk.encode(StreamEnd(wanted.session, wanted.next_seqs)))
            self.is_over = True
        elif now_ns >= self._give_up_ns:
            self._reject(RecoveryCode.NOT_YET)

    def _try_snapshot(self, request, now_ns):
        state = self._model.state
        ready = state.session == request.session and all(
            state.next_seqs[stream - 1] >= seq for stream, seq in request.min_seqs
        )
        if ready:
            cut = state.cut(request.tickers)
            packets = SnapshotPackets(cut, request.streams, is_packed=request.packed)
            datagrams = packets.start(now_ns)
            for images in cut.slices():
                self._send(self._talk.encode_books(packets.books(images)))
                datagrams += packets.add(images, now_ns)
            self._send(self._talk.encode_datagrams([*datagrams, *packets.finish(now_ns)]))
            end = SnapshotEnd(
                cut.session, tuple(enumerate(cut.next_seqs, start=1)), tuple(packets.counts.items())
            )
            self._send(self._talk.encode(end))
            self.is_over = True
        elif state.session > request.session:
            self._reject(RecoveryCode.TOO_OLD)
        elif now_ns >= self._give_up_ns:
            unknown = request.session not in self._model.sessions
            self._reject(RecoveryCode.UNKNOWN_SESSION if unknown else RecoveryCode.NOT_YET)
