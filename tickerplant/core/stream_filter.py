"""Which logged datagrams belong to a stream that a client asked for. Pure."""

from tickerplant.core.recovery_wire import StreamRequest, StreamSeqs
from tickerplant.core.wire import Header, Kind


class StreamFilter:
    """Takes the datagrams of the log in order, from anywhere before the wanted ones; see `StreamRequest`.

    `next_seqs` are those of `session` that come next. A range is complete once they are all reached, or the session
    has ended.
    """

    def __init__(self, request: StreamRequest) -> None:
        self.session = request.session
        self.is_range = bool(request.until_seqs)
        self.is_ended = False
        """Of a range: the log goes on with another session."""
        self._next = {int(stream): seq for stream, seq in request.next_seqs}
        self._until = dict(request.until_seqs)

    @property
    def next_seqs(self) -> StreamSeqs:
        """(stream, sequence) pairs."""
        return tuple(sorted(self._next.items()))

    @property
    def is_complete(self) -> bool:
        """Of a range: nothing of it is missing any more, or will come."""
        if not self.is_range:
            return False
        return self.is_ended or all(seq >= self._until[one] for one, seq in self._next.items())

    def take(self, header: Header) -> bool:
        """Whether the datagram is to be sent."""
        if header.session != self.session:
            if header.session < self.session:
                return False
            if self.is_range:
                self.is_ended = True
                return False
            self.session = header.session
            self._next = dict.fromkeys(self._next, 1)
        stream = header.stream
        wanted = self._next.get(stream)
        if wanted is None:
            return False
        end = header.seq + header.message_count
        if self.is_range and (header.seq >= self._until[stream] or header.kind != Kind.DATA):
            # What comes after the range, if anything of it was missing, tells that it is not in the log.
            if header.seq >= self._until[stream]:
                self._next[stream] = max(wanted, self._until[stream])
            return False
        if header.kind != Kind.DATA:
            return end >= wanted
        if end <= wanted:
            return False
        self._next[stream] = end
        return True
