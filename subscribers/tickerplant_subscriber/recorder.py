"""Records everything that a plant publishes into files: no duplicate, and no hole as far as recovery helps.

    record("/var/lib/tickerplant/recording", recovery=["127.0.0.1:26410"])

A recorder that was away goes on after its last complete record: recovery is asked for everything since. What cannot be
had is told in the events of its session. The files are read back with `read_recording`, `replay` and `read_log`.
"""

import asyncio
import logging
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TypedDict, Unpack

import uvloop

from tickerplant.core.messages import GapCause, Stream
from tickerplant.errors import ConfigurationError
from tickerplant.limits import (
    RECORDING_FLUSH_S,
    RECORDING_PENDING_BYTES_MAX,
    RECORDING_RECOVERY_RETRY_S,
    RECORDING_RECOVERY_WAIT_S,
    RECORDING_SYNC_S,
)
from tickerplant_subscriber.event_log import EventLog, describe, enum_name
from tickerplant_subscriber.events import (
    UNKNOWN_SEQ,
    DatagramsRefused,
    Event,
    Gap,
    SessionChanged,
    SessionEnded,
    StreamAlive,
    StreamDead,
)
from tickerplant_subscriber.filters import EVERY_TICKER, TickerFilter
from tickerplant_subscriber.options import NetworkOptions, ReceiverOptions
from tickerplant_subscriber.plant_state import PlantKey
from tickerplant_subscriber.reception import Reception
from tickerplant_subscriber.recording_format import Place, RecordedEvent
from tickerplant_subscriber.recording_writer import RecordingWriter, Rotation, SyncRun, broken
from tickerplant_subscriber.stats import SubscriberStats
from tickerplant_subscriber.stream_state import Messages, StreamState

logger = logging.getLogger("tickerplant_subscriber")
_SECOND_NS = 1_000_000_000
_TOLD = (Gap, SessionChanged, SessionEnded, StreamDead, StreamAlive, DatagramsRefused)


class RecordingOptions(TypedDict, total=False):
    """When another segment begins; see `Recorder`."""

    segment_max_bytes: int
    segment_max_s: float


class RecorderOptions(NetworkOptions, RecordingOptions, total=False):
    """The keyword arguments of `record` and `Recorder`."""


class RecorderStats(TypedDict):
    """Counts since the start."""

    messages: int
    messages_lost: int
    gaps: int
    bytes_written: int
    segments_begun: int
    events_left_out: int


class Recorder:
    """One recording; `run` once.

    Another segment begins after `segment_max_bytes` or `segment_max_s`. The other options are those of
    `ReceiverOptions`. Raises `ConfigurationError`, `CredentialsError`, and `RecordingError` if the folder cannot be
    used or another recorder writes there.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        segment_max_bytes: int = 256 * 1024 * 1024,
        segment_max_s: float = 3_600.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        if segment_max_bytes <= 0 or segment_max_s <= 0:
            raise ConfigurationError("a segment's size and age must be positive")
        self.folder = Path(folder).expanduser()
        self.messages = 0
        self.messages_lost = 0
        self.gaps = 0
        options = ReceiverOptions(**network)
        self._addresses = options.recovery_addresses
        rotation = Rotation(segment_max_bytes, int(segment_max_s * _SECOND_NS))
        self._writer = RecordingWriter(self.folder, rotation)
        self.position = self._writer.position
        """Where the recording went on; None: it is a new one."""
        try:
            self._reception = Reception(
                options,
                tuple(Stream),
                TickerFilter(EVERY_TICKER),
                deliver=self._deliver,
                tell=self._take_event,
                take_image=None,
                fail=self._fail,
                resume=self.position if options.recovery_addresses else None,
                is_from_beginning=True,
            )
        except BaseException:
            self._writer.abandon()
            raise
        position = self.position
        self._plant: PlantKey | None = (
            None if position is None else (position.publisher, position.partition)
        )
        self._event_log = EventLog(self._reception.clock.now_ns)
        self._stopped = asyncio.Event()
        self._failure: Exception | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self._is_foreign_told = False
        self._events: list[RecordedEvent] = []

    def stats(self) -> SubscriberStats:
        """What was received."""
        return self._reception.stats(None)

    def counts(self) -> RecorderStats:
        """What was recorded."""
        return RecorderStats(
            messages=self.messages,
            messages_lost=self.messages_lost,
            gaps=self.gaps,
            bytes_written=self._writer.bytes_written,
            segments_begun=self._writer.segments_begun,
            events_left_out=self._writer.events_left_out,
        )

    def stop(self) -> None:
        """Ends `run`; everything received by then is on disk when it returns."""
        self._stopped.set()

    # --- the run ----------------------------------------------------------------------------------

    async def run(self, *, catch_signals: bool = False) -> None:
        """Records until stopped. Raises `NetworkSetupError`, and `RecordingError` if the files cannot be written."""
        loop = asyncio.get_running_loop()
        caught = (signal.SIGINT, signal.SIGTERM) if catch_signals else ()
        try:
            for number in caught:
                loop.add_signal_handler(number, self.stop)
            if self.position is not None:
                await self._wait_for_recovery()
            self._reception.open()
            self._reception.start()
            await self._keep_synced()
        except OSError as error:
            self._fail(error)
        finally:
            self._reception.close()
            for number in caught:
                loop.remove_signal_handler(number)
            self._close()
        if isinstance(self._failure, OSError):
            raise broken(self.folder, self._failure) from self._failure
        if self._failure is not None:
            raise self._failure

    async def _wait_for_recovery(self) -> None:
        """What came since our position is recovery's to give: groups are joined once it is there, or after a while."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + RECORDING_RECOVERY_WAIT_S
        is_told = False
        while self._addresses and not self._stopped.is_set() and loop.time() < end_s:
            if any([await _answers(*address) for address in self._addresses]):
                return
            if not is_told:
                is_told = True
                logger.warning(
                    "recovery does not answer; waiting up to %d s for it", RECORDING_RECOVERY_WAIT_S
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), RECORDING_RECOVERY_RETRY_S)

    async def _keep_synced(self) -> None:
        """Until stopped. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        while not self._stopped.is_set():
            stopping = asyncio.ensure_future(self._stopped.wait())
            await asyncio.wait((stopping,), timeout=RECORDING_SYNC_S)
            stopping.cancel()
            if self._failure is not None:
                return
            self._settle()
            runs = self._writer.begin_sync()
            await loop.run_in_executor(None, _run_all, runs)
            self._writer.end_sync(runs)

    def _settle(self) -> None:
        """Says in the files where the streams are, and hands everything to the kernel. Raises `OSError`."""
        places = self._reception.arbiter.places()
        if self._plant is not None and self._plant in places:
            now_ns = self._reception.clock.now_ns()
            for stream, (session, next_seq) in places[self._plant].items():
                self._writer.mark(Place(*self._plant, session, stream), next_seq, now_ns)
            self._writer.leave_sessions_before(
                min(session for session, _ in places[self._plant].values())
            )
        self._flush()

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._writer.flush()
        events, self._events = self._events, []
        for event in events:
            self._writer.tell(event)

    def _close(self) -> None:
        """Everything that was received is written, unless writing is what failed."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        try:
            if self._failure is None:
                self._settle()
                self._writer.close()
        except OSError as error:
            self._fail(error)
        finally:
            self._writer.abandon()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._stopped.set()

    # --- from the arbiter -------------------------------------------------------------------------

    def _deliver(
        self, state: StreamState, first_seq: int, messages: Messages, ts_send_ns: int
    ) -> None:
        key = (state.publisher, state.partition)
        if key != self._plant and not self._take_plant(key):
            return
        place = Place(*key, state.session, state.stream)
        now_ns = self._reception.clock.now_ns()
        self._writer.append(place, first_seq, ts_send_ns, messages, now_ns)
        self.messages += len(messages)
        if self._writer.pending_bytes >= RECORDING_PENDING_BYTES_MAX:
            self._flush()
        elif self._flush_timer is None:
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_later(RECORDING_FLUSH_S, self._on_flush_timer)

    def _on_flush_timer(self) -> None:
        self._flush_timer = None
        try:
            self._flush()
        except OSError as error:
            self._fail(error)

    def _take_plant(self, key: PlantKey) -> bool:
        """A recording is of one plant: the first heard, or the one it began with."""
        if self._plant is None:
            self._plant = key
            return True
        if not self._is_foreign_told:
            self._is_foreign_told = True
            logger.warning(
                "publisher %d partition %d is not recorded: %s is of publisher %d partition %d",
                *key,
                self.folder,
                *self._plant,
            )
        return False

    def _take_event(self, event: Event) -> None:
        key = (event.publisher, event.partition)
        is_of_plant = isinstance(event, DatagramsRefused) or key == self._plant
        if self._plant is None and isinstance(event, SessionChanged):
            is_of_plant = self._take_plant(key)
        if not is_of_plant:
            return
        told: Event | None = event
        if isinstance(event, Gap):
            told = self._clipped(event)
        elif isinstance(event, SessionEnded):
            self._mark_end(event)
        if told is None:
            return
        self._event_log.take(told)
        if isinstance(told, _TOLD) and self._plant is not None:
            session = self._reception.arbiter.plants[self._plant].session
            self._events.append(_recorded(told, session, self._reception.clock.now_ns()))

    def _clipped(self, gap: Gap) -> Gap | None:
        """Without what the files have from an earlier run; None if that is all of it."""
        before = self.position
        place = None if before is None else before.of(gap.stream)
        from_seq = gap.from_seq
        if place is not None and place[0] == gap.session:
            from_seq = max(from_seq, place[1])
        elif place is not None and place[0] > gap.session:
            return None
        if gap.to_seq != UNKNOWN_SEQ and from_seq > gap.to_seq:
            return None
        clipped = Gap(
            gap.stream,
            gap.session,
            from_seq,
            gap.to_seq,
            gap.cause,
            publisher=gap.publisher,
            partition=gap.partition,
        )
        self.gaps += 1
        self.messages_lost += clipped.message_count or 0
        return clipped

    def _mark_end(self, event: SessionEnded) -> None:
        key = (event.publisher, event.partition)
        session, next_seq = self._reception.arbiter.places()[key][event.stream]
        place = Place(*key, session, event.stream)
        self._writer.mark(place, next_seq, self._reception.clock.now_ns(), is_end=True)


def _recorded(event: Event, session: int, now_ns: int) -> RecordedEvent:
    """`session`: of events that are about none."""
    kind = type(event).__name__
    if isinstance(event, Gap):
        return RecordedEvent(
            now_ns,
            kind,
            event.session,
            event.stream,
            event.from_seq,
            event.to_seq,
            enum_name(GapCause, event.cause),
        )
    return RecordedEvent(
        now_ns,
        kind,
        getattr(event, "session", session),
        getattr(event, "stream", 0),
        detail=describe(event),
    )


async def _answers(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        async with asyncio.timeout(RECORDING_RECOVERY_RETRY_S):
            _reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _run_all(runs: list[SyncRun]) -> None:
    """Raises `OSError`, the first, after all were tried."""
    failure: OSError | None = None
    for run in runs:
        try:
            run.run()
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def record(folder: Path | str, **options: Unpack[RecorderOptions]) -> None:
    """Records on uvloop until SIGINT or SIGTERM; see `Recorder` for options and errors."""
    recorder = Recorder(folder, **options)
    in_main_thread = threading.current_thread() is threading.main_thread()
    uvloop.run(recorder.run(catch_signals=in_main_thread))
