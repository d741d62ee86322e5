"""Every error the project raises on purpose, in one tree.

    TickerplantError
     +-- ConfigurationError          the user's configuration or command line      exit 2
     |    +-- UsageError             an argument that cannot be understood
     +-- MissingExtraError           a daemon command on a base install            exit 2
     +-- TemporaryError              try again later (clock, network, busy)        exit 75
     |    +-- ClockSkewError
     |    +-- ExchangeUnavailableError
     +-- CredentialsError            key missing, unreadable or of the wrong type  exit 2
     +-- ExchangeError               the exchange refused or broke its protocol    exit 1
     |    +-- ObsoleteFormatError    frames of the format before 2026-03-12
     |    +-- NotFoundError          REST says 404: no such market, event or series
     +-- NetworkSetupError           interface, port or multicast group unusable   exit 1
     |    +-- GroupOccupiedError     foreign protocol or another plant on a group
     +-- StateDirectoryError         unusable, or held by another plant            exit 1
     +-- TickLogError                the log folder unusable, or held by another   exit 1
     |    +-- DamagedSegmentError    a segment header that does not verify
     |    +-- DamagedCheckpointError a checkpoint of recovery that does not verify
     +-- CaptureError                the folder of the raw capture unusable        exit 1
     |    +-- DamagedCaptureError    a capture that is cut short or does not verify
     +-- RecordingError              the folder of a recording unusable            exit 1
     +-- StoreError                  the store, its database or its files           exit 1
     |    +-- StoreUnavailableError  not now: it is tried again                     exit 75
     |    +-- DamagedStoreError      a file of rows that is damaged or missing
     |    +-- NoSuchBookError        a book that was never told, or not yet
     +-- FixedPointError             a decimal string that cannot be held exactly
     +-- WireError                   a datagram that is not valid KTP/1
          +-- ForeignDatagramError, TruncatedDatagramError, UnsupportedVersionError,
              LengthMismatchError, MalformedBodyError, OversizedMessageError, AuthenticationError

`str(error)` is one line that names the thing and the remedy.
"""

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_TEMPORARY = 75


class TickerplantError(Exception):
    """Root of the tree; `exit_code` is what the command line exits with."""

    exit_code = EXIT_FAILURE


class ConfigurationError(TickerplantError):
    """The user's configuration or command line is wrong."""

    exit_code = EXIT_USAGE


class UsageError(ConfigurationError):
    """An argument of a command or a function that cannot be understood."""


class MissingExtraError(ConfigurationError):
    """A command needs `pip install 'kalshi-tickerplant[daemon]'`."""


class CredentialsError(ConfigurationError):
    """The API key is missing, unreadable or of a type the exchange does not take."""


class TemporaryError(TickerplantError):
    """The same call may succeed later without any change."""

    exit_code = EXIT_TEMPORARY


class ClockSkewError(TemporaryError):
    """The exchange refuses our signatures because the clocks differ."""


class ExchangeUnavailableError(TemporaryError):
    """The exchange does not answer, or answers 429 or 5xx."""


class ExchangeError(TickerplantError):
    """The exchange refused a request or broke its own protocol."""


class ObsoleteFormatError(ExchangeError):
    """Frames of the format before 2026-03-12 (integer cents): refused, never misread."""


class NotFoundError(ExchangeError):
    """The exchange knows no such market, event or series (yet: 404 may follow a creation for a moment)."""


class NetworkSetupError(TickerplantError):
    """An interface, port or multicast group cannot be used."""


class GroupOccupiedError(NetworkSetupError):
    """A multicast group already carries another plant or a foreign protocol."""


class StateDirectoryError(TickerplantError):
    """The state directory cannot be used, or another plant holds it."""


class TickLogError(TickerplantError):
    """The folder of the tick log cannot be used, or another plant holds it."""


class DamagedSegmentError(TickLogError):
    """The header of a log segment is cut short or does not verify."""


class DamagedCheckpointError(TickLogError):
    """A checkpoint is cut short, does not verify, or contradicts itself."""


class CaptureError(TickerplantError):
    """The folder of the raw capture cannot be used, or what is asked of a capture it cannot give."""


class DamagedCaptureError(CaptureError):
    """A capture that is cut short, does not verify, or was made by a program that this one does not know."""


class RecordingError(TickerplantError):
    """The folder of a recording cannot be used, is held by another recorder, or holds none."""


class StoreError(TickerplantError):
    """The store, its database or its files refuse, or cannot be used."""


class StoreUnavailableError(StoreError):
    """The database or the disk of the store cannot take rows now; the same rows are offered again."""

    exit_code = EXIT_TEMPORARY


class DamagedStoreError(StoreError):
    """A file of rows that does not read, lacks rows, or is missing; the text names it."""


class NoSuchBookError(StoreError):
    """Nothing is stored of the book of a market at the time asked for."""


class FixedPointError(TickerplantError):
    """A decimal string that is malformed or cannot be held exactly."""


class WireError(TickerplantError):
    """A datagram that is not valid KTP/1."""


class ForeignDatagramError(WireError):
    """The magic is not ours: another protocol on the group."""


class TruncatedDatagramError(WireError):
    """Shorter than a header, or than its header says."""


class UnsupportedVersionError(WireError):
    """A KTP version, kind or stream that this library does not know."""


class LengthMismatchError(WireError):
    """The length fields contradict the datagram."""


class MalformedBodyError(WireError):
    """The body is not one msgpack array of `count` tagged arrays."""


class OversizedMessageError(WireError):
    """A message or field beyond its proven maximum; it is refused before it is sent."""


class AuthenticationError(WireError):
    """The trailer is missing, of an unknown key, or wrong."""
