"""Damaged requests into all of recovery but its sockets, and its damaged answers into the decoders of a subscriber.

The tick log is a real one, in a folder of its own until `close`.
"""

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from mutations import HOSTILE_MSGPACK, flip_bits, insert, repeat_part, splice, truncate

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

from plant_log import PlantLog
from tick_log import QUICK

from tickerplant.core import recovery_wire, wire
from tickerplant.core.conversation import Conversation, Keys
from tickerplant.core.gap_fill import GapFillServer
from tickerplant.core.messages import Stream
from tickerplant.core.packed_books import PackedBooks, messages_of, unpack
from tickerplant.core.recovery_wire import (
    FRAME_HEADER,
    NONCE_BYTES,
    FrameKind,
    FrameReader,
    GapFill,
    GapFillKind,
    Open,
    RecoveryCode,
    Seal,
    SnapshotRequest,
    StreamRequest,
    decode_gap_fill,
    encode_control,
    encode_gap_fill,
)
from tickerplant.core.snapshot_packets import SnapshotPackets
from tickerplant.core.stream_filter import StreamFilter
from tickerplant.errors import WireError
from tickerplant.limits import (
    GAP_FILL_BYTES_MAX,
    GAP_FILL_DATAGRAMS_MAX,
    RECOVERY_CLIENTS_MAX,
    RECOVERY_FRAME_MAX_BYTES,
)
from tickerplant.runtime.recovery_log import RecoveryLog, find_begin

START_NS = 1_795_197_851_000_000_000
REQUEST_NS = 20_000
REQUESTS_PER_BATCH = 64
REQUESTS_KEPT = 2_000
CLIENTS = 3 * RECOVERY_CLIENTS_MAX
KEYS = {7: b"k" * 32, 8: b"another " * 4}
KEY = (7, KEYS[7])
NONCE = b"n" * NONCE_BYTES
STATES = (Stream.BBO, Stream.TICKER, Stream.DELTA, Stream.STATUS)
EDGES = (0, 1, 2, 63, 64, 65, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


class RequestFuzzer:
    """Inputs by `run_batch`; whatever recovery raises is a finding, and so is an answer beyond its bounds."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.exceptions: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.last_input = b""
        self.now_ns = START_NS
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name) / "log"
        with PlantLog(folder, seed=seed, options=QUICK) as plant:
            plant.step(150)
            plant.end_session()
            plant.begin_session()
            plant.step(150)
            self._sessions = (plant.session, plant.session, plant.session - 10**9)
            self._next_seqs = plant.next_seqs
            self._datagrams = plant.datagrams[-100:]
        self.log = RecoveryLog(folder, find_begin(folder), lambda: self.now_ns)
        while self.log.tail.apply(self.now_ns) or self.log.tail.read(self.now_ns):
            pass
        self.now_ns += 10**9
        self.log.tail.apply(self.now_ns)
        self._hello = self.log.hello()
        self._books: list[bytes] = []
        self._requests = {
            is_signed: [encode_gap_fill(self._gap_fill(), key) for _ in range(REQUESTS_KEPT)]
            for is_signed, key in ((False, None), (True, KEY))
        }
        self.open_server = self._new_server(None)
        self.keyed_server = self._new_server(KEYS)

    def close(self) -> None:
        """Removes the log."""
        self.log.close()
        self._folder.cleanup()

    def _new_server(self, keys: dict[int, bytes] | None) -> GapFillServer:
        return GapFillServer(
            self.log,
            client_bytes_per_second=2 * 10**4,
            total_bytes_per_second=10**9,
            keys=keys,
            key_id=7 if keys else 0,
        )

    def run_batch(self) -> int:
        """Some requests, each by one of the three ways in."""
        for _ in range(REQUESTS_PER_BATCH):
            self.now_ns += REQUEST_NS
            way = self.chance.random()
            if way < 0.88:
                self._ask_for_a_gap()
            elif way < 0.94:
                self._converse()
            else:
                self._answer_a_subscriber()
        for _step in self.log.index_wanted():
            pass
        return REQUESTS_PER_BATCH

    # --- gap fill ---------------------------------------------------------------------------------

    def _ask_for_a_gap(self) -> None:
        chance = self.chance.random
        is_keyed = chance() < 0.5
        server = self.keyed_server if is_keyed else self.open_server
        if chance() < 0.05:
            self._renew_request()
        data = self._requests[is_keyed == (chance() < 0.95)][int(chance() * REQUESTS_KEPT)]
        if chance() < 0.6:
            data = self._damaged(data)
        self.last_input = data
        answer = server.receive(data, f"client {int(chance() ** 3 * CLIENTS)}", self.now_ns)
        self._check_answer(answer, is_keyed)
        if answer and chance() < 0.3:
            # What is damaged on its way back reaches a subscriber's decoder.
            self._decode_reply(self._damaged(answer[-1]), is_keyed)

    def _renew_request(self) -> None:
        """Another one, with and without trailer, in the place of one of those that are asked in turn."""
        index = int(self.chance.random() * REQUESTS_KEPT)
        request = self._gap_fill()
        for is_signed, requests in self._requests.items():
            requests[index] = encode_gap_fill(request, KEY if is_signed else None)

    def _check_answer(self, answer: list[bytes], is_keyed: bool) -> None:
        assert len(answer) <= GAP_FILL_DATAGRAMS_MAX + 1
        assert sum(map(len, answer)) <= GAP_FILL_BYTES_MAX + 100
        if not answer:
            self.outcomes["not answered"] += 1
            return
        reply = decode_gap_fill(answer[-1], KEYS if is_keyed else None)
        assert reply.kind == GapFillKind.REPLY
        assert (reply.code == RecoveryCode.SERVED) == (len(answer) > 1)
        self.outcomes[f"gap fill {RecoveryCode(reply.code).name.lower()}"] += 1

    def _gap_fill(self) -> GapFill:
        chance = self.chance
        stream = int(chance.random() * 5) + 1
        from_seq = self._seq(stream)
        length = chance.choice((0, 1, 5, 100, 10**6)) if chance.random() < 0.9 else -1
        return GapFill(
            kind=GapFillKind.REQUEST if chance.random() < 0.95 else GapFillKind.REPLY,
            stream=stream if chance.random() < 0.95 else int(chance.random() * 256),
            code=0,
            request_id=int(chance.random() * 2**32),
            publisher=1 if chance.random() < 0.95 else int(chance.random() * 2**16),
            partition=0,
            session=self._session(),
            from_seq=from_seq,
            to_seq=max(0, min(2**64 - 1, from_seq + length)),
        )

    def _session(self) -> int:
        chance = self.chance
        session = self._sessions[int(chance.random() * 3)]
        return session if chance.random() < 0.9 else chance.choice((*EDGES, session + 1))

    def _seq(self, stream: int) -> int:
        chance = self.chance
        if chance.random() < 0.1:
            return chance.choice(EDGES)
        return int(chance.random() * (self._next_seqs[stream - 1] + 5))

    def _decode_reply(self, data: bytes, is_keyed: bool) -> None:
        try:
            decode_gap_fill(data, KEYS if is_keyed else None)
            self.outcomes["damaged reply decoded"] += 1
        except WireError as error:
            self.exceptions[type(error).__name__] += 1

    # --- TCP, the side of recovery ----------------------------------------------------------------

    def _converse(self) -> None:
        """One connection, its bytes in pieces."""
        is_keyed = self.chance.random() < 0.5
        keys = Keys(7, KEYS) if is_keyed else None
        conversation = Conversation(
            self.log.hello, self.now_ns, nonce=NONCE if is_keyed else b"", keys=keys
        )
        data = self.last_input = self._said(is_keyed)
        for piece in self._pieces(data):
            was_over = conversation.is_over
            answer = conversation.receive(piece)
            assert not (was_over and answer)
            assert len(conversation._reader._buffer) <= RECOVERY_FRAME_MAX_BYTES + len(piece) + 4
        if conversation.is_over:
            assert conversation.code is not None
            self.outcomes[f"conversation {conversation.code.name.lower()}"] += 1
        elif conversation.request is not None:
            self._serve(conversation.request)
        else:
            self.outcomes["conversation incomplete"] += 1

    def _said(self, is_keyed: bool) -> bytes:
        """What a client sends, damaged as a rule."""
        chance = self.chance.random
        seal = Seal(7, KEYS, b"") if is_keyed else None
        frames = [encode_control(Open(1 if chance() < 0.98 else int(chance() * 9), NONCE), seal)]
        if seal is not None:
            seal.renew(NONCE)
        frames += [self._request_frame(seal) for _ in range(1 if chance() < 0.9 else 2)]
        data = b"".join(frames)
        return self._damaged(data) if chance() < 0.3 else data

    def _request_frame(self, seal: Seal | None) -> bytes:
        """A request whose frame is right even where its content is not."""
        if self.chance.random() < 0.4:
            return encode_control(self._request(), seal)
        payload = encode_control(self._request())[FRAME_HEADER.size :]
        payload = self._damaged(payload)[:60_000]
        return recovery_wire.encode_frame(FrameKind.CONTROL, payload, seal)

    def _request(self) -> StreamRequest | SnapshotRequest:
        chance = self.chance
        if chance.random() < 0.6:
            streams = chance.sample((1, 2, 3, 4, 5), chance.randrange(1, 6))
            next_seqs = tuple((stream, self._seq(stream)) for stream in streams)
            until = tuple(
                (one, min(seq + chance.randrange(50), 2**64 - 1)) for one, seq in next_seqs
            )
            until = until if chance.random() < 0.7 else ()
            return StreamRequest(1, 0, self._session(), next_seqs, until)
        tickers = tuple(f"KXT-{chance.randrange(12)}" for _ in range(chance.randrange(4)))
        min_seqs = ((4, self._seq(4)),) if chance.random() < 0.5 else ()
        packed = chance.random() < 0.5
        return SnapshotRequest(1, 0, self._session(), min_seqs, STATES, tickers, packed)

    def _serve(self, request: StreamRequest | SnapshotRequest) -> None:
        """As the server does, up to the reading of files."""
        code, extent = self.log.look_up(request.session, request.publisher, request.partition)
        if extent is None:
            self.outcomes[f"request {code.name.lower()}"] += 1
        elif isinstance(request, StreamRequest):
            place = self.log.place_of(request.session, request.next_seqs)
            if isinstance(place, RecoveryCode):
                self.outcomes[f"range {place.name.lower()}"] += 1
                return
            wanted = StreamFilter(request)
            for datagram in self._datagrams:
                wanted.take(wire.decode_header(datagram))
            self.outcomes["range served"] += 1
        elif self.chance.random() < 0.2:
            cut = self.log.state.cut(request.tickers)
            packets = SnapshotPackets(cut, request.streams, is_packed=request.packed)
            packets.start(self.now_ns)
            for images in cut.slices():
                self._books = packets.books(images) or self._books
                packets.add(images, self.now_ns)
            packets.finish(self.now_ns)
            cut.fail()
            self.outcomes["snapshot served"] += 1

    # --- TCP, the side of a subscriber ------------------------------------------------------------

    def _answer_a_subscriber(self) -> None:
        """An answer of recovery, damaged, into what a subscriber reads frames and datagrams with."""
        is_keyed = self.chance.random() < 0.5
        reader = FrameReader(Seal(7, KEYS, NONCE) if is_keyed else None)
        seal = Seal(7, KEYS, NONCE) if is_keyed else None
        start = int(self.chance.random() * len(self._datagrams))
        frames = [encode_control(self._hello, seal)]
        for datagram in self._datagrams[start : start + 3]:
            if self.chance.random() < 0.5:
                datagram = self._damaged(datagram)[:60_000]  # noqa: PLW2901 - the damaged one takes its place
            frames.append(recovery_wire.encode_frame(FrameKind.DATAGRAM, datagram, seal))
        for payload in self._books[:1]:
            books = self._damaged(payload) if self.chance.random() < 0.5 else payload
            frames.append(recovery_wire.encode_frame(FrameKind.BOOKS, books[:60_000], seal))
        frames.append(encode_control(recovery_wire.Reject(9, "x"), seal))
        data = b"".join(frames)
        self.last_input = data = self._damaged(data) if self.chance.random() < 0.5 else data
        for piece in self._pieces(data):
            reader.feed(piece)
            if not self._read_frames(reader):
                return
            assert len(reader._buffer) <= RECOVERY_FRAME_MAX_BYTES + 4

    def _read_frames(self, reader: FrameReader) -> bool:
        """Whether the connection is still of use."""
        while True:
            try:
                frame: Any = reader.next()
            except WireError as error:
                self.exceptions[type(error).__name__] += 1
                return False
            if frame is None:
                return True
            if not isinstance(frame, bytes):
                self.outcomes[f"told {type(frame).__name__}"] += 1
                if isinstance(frame, PackedBooks):
                    self._load_books(frame)
                continue
            try:
                header = wire.decode_header(frame)
                if header.kind == wire.Kind.DATA:
                    wire.decode_body(frame, header)
                self.outcomes["repaired datagram"] += 1
            except WireError as error:
                self.exceptions[type(error).__name__] += 1

    def _load_books(self, packed: PackedBooks) -> None:
        """As the recovery client does."""
        for one in packed.books:
            whole = unpack(one)
            self.outcomes["book loaded" if whole.book is not None else "book refused"] += 1
            messages_of(whole)

    # --- damage -----------------------------------------------------------------------------------

    def _pieces(self, data: bytes) -> list[bytes]:
        """As they may arrive."""
        if self.chance.random() < 0.7 or len(data) < 2:
            return [data]
        cuts = sorted(self.chance.randrange(len(data)) for _ in range(4))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _damaged(self, data: bytes) -> bytes:
        chance = self.chance.random
        ways = (flip_bits, flip_bits, truncate, insert, repeat_part)
        way = int(chance() * 8)
        if way < len(ways):
            return ways[way](data, self.chance)
        if way == 5:
            return splice(data, self._datagrams[int(chance() * len(self._datagrams))], self.chance)
        if way == 6:
            hostile = HOSTILE_MSGPACK[int(chance() * len(HOSTILE_MSGPACK))]
            start = int(chance() * len(data))
            return data[:start] + hostile + data[start + int(chance() * 10) :]
        return self.chance.randbytes(int(chance() * 100))
