"""The keys a plant signs with: loaded at the start, taken over from a changed file while running."""

from collections.abc import Sequence
from typing import Any

from tickerplant.core.keyring import KeyRing
from tickerplant.errors import CredentialsError
from tickerplant.key_file import KeyFile, is_readable_by_all
from tickerplant.runtime.network import Heard


class DatagramKeys:
    """The key file of `publish.key_path`, if there is one; `log` is always a structlog logger."""

    def __init__(self, key_path: str) -> None:
        """Raises `CredentialsError` for a file of no use."""
        self._file = KeyFile(key_path) if key_path else None

    @property
    def ring(self) -> KeyRing | None:
        """The keys; None if datagrams are not signed."""
        return None if self._file is None else self._file.ring

    @property
    def signing_key_id(self) -> int:
        """Of the key that signs; 0 if datagrams are not signed."""
        return 0 if self._file is None else self._file.ring.signing_key_id

    def tell_permissions(self, log: Any) -> None:
        """Warn if more users than need be can read the keys."""
        if self._file is not None and is_readable_by_all(self._file.path):
            log.warning("datagram_keys_readable_by_all", path=str(self._file.path))

    def tell_strangers(self, heard: Sequence[Heard], log: Any) -> None:
        """Warn of those who send on our groups without our keys; they do not keep a plant with keys from starting."""
        if self._file is None:
            return
        for item in heard:
            if item.header is None:
                log.warning(
                    "strangers_on_groups",
                    group=item.group,
                    sender=item.sender,
                    problem=item.problem,
                    rate_key=f"strangers_on_groups {item.group}",
                )

    def look(self, log: Any) -> KeyRing | None:
        """The keys if the file has changed since the last look; to be called once a second."""
        if self._file is None:
            return None
        try:
            if not self._file.reread():
                return None
        except CredentialsError as error:
            log.warning("datagram_keys_unusable", reason=str(error))
            return None
        ring = self._file.ring
        log.info("datagram_keys_changed", key_ids=list(ring.keys))
        return ring
