"""Rows and datagrams that cannot be stored, whatever is done: kept aside with the reason, one JSON object a line.

    {"table": "bbo", "reason": "…", "row": {"ts_recv": 1790…, "session": …, "seq": …, …}}
    {"position": {"session": …, "ordinal": …, "offset": …}, "reason": "…", "datagram": "<base64>"}

Letters are written before the position in the log moves past their rows. After a crash in between, the same letter is
there twice, and its keys tell so.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tickerplant.core.logformat import LogPosition
from tickerplant.core.tables import TABLES
from tickerplant.errors import StoreUnavailableError
from tickerplant.limits import DEAD_LETTERS_MAX_BYTES
from tickerplant.store.backend import RejectedRow

DEAD_LETTER_FILE = "dead-letters.jsonl"
"""In the folder of the store."""


class DeadLetters:
    """Appends to the file; beyond `DEAD_LETTERS_MAX_BYTES` letters are only counted."""

    def __init__(self, folder: Path) -> None:
        """Of the store's `folder`, which need not exist yet."""
        self.path = folder / DEAD_LETTER_FILE
        self.letters = 0
        self.letters_dropped = 0

    def add_rows(self, rejected: Sequence[RejectedRow]) -> None:
        """Keep rows. Raises `StoreUnavailableError`."""
        self._append(
            [
                {
                    "table": one.table,
                    "reason": one.reason,
                    "row": dict(zip(TABLES[one.table].column_names, one.row, strict=True)),
                }
                for one in rejected
            ]
        )

    def add_datagram(self, position: LogPosition, datagram: bytes, reason: str) -> None:
        """Keep a datagram of the log that does not decode. Raises `StoreUnavailableError`."""
        self._append([{"position": position._asdict(), "reason": reason, "datagram": datagram}])

    def _append(self, letters: Sequence[dict[str, object]]) -> None:
        if not letters:
            return
        lines = [msgspec.json.encode(letter, enc_hook=str) + b"\n" for letter in letters]
        try:
            with self.path.open("ab") as file:
                for line in lines:
                    if file.tell() + len(line) > DEAD_LETTERS_MAX_BYTES:
                        self.letters_dropped += 1
                    else:
                        file.write(line)
                        self.letters += 1
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreUnavailableError(
                f"store: {self.path}: {error.strerror or error}: free some space or make it writable"
            ) from error
