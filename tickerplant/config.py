"""The configuration: what can be set, its defaults, and what is a legal value.

A `Config` that exists is valid: every section checks its values when it is built and raises `InvalidValueError`,
whose one line names the key, the value and the remedy. What is legal is `config_checks`; where values come from (file,
environment, command line) is `config_sources`. Secrets are never values here, only paths; `Credentials` carries the
rest.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from tickerplant.config_checks import CHECKS, KEY_PEM_VARIABLE, shown
from tickerplant.core.messages import Stream
from tickerplant.errors import ConfigurationError, CredentialsError


class InvalidValueError(ConfigurationError):
    """A known key with a value it cannot have; `key` is `section.key`."""

    def __init__(self, key: str, value: object, problem: str) -> None:
        """`problem` says what is wrong and the remedy, in one line."""
        super().__init__(f"{key} = {shown(value)}: {problem}")
        self.key = key


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """An API key: its id and exactly one of a path to the PEM file and the PEM itself."""

    key_id: str
    key_path: Path | None
    pem: bytes | None

    def __repr__(self) -> str:
        """Hide the key: a repr may end in a log."""
        return f"Credentials(key_id={mask(self.key_id)!r}, key_path={self.key_path})"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file; checks its values when built."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every value. Raises `InvalidValueError`."""
        for name in self.__struct_fields__:
            key = f"{self.section}.{name}"
            value = getattr(self, name)
            check = CHECKS.get(key)
            problem = check(value) if check is not None else None
            if problem is not None:
                raise InvalidValueError(key, value, problem)


class ExchangeConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[exchange]: where the exchange is and who we are."""

    section: ClassVar[str] = "exchange"

    websocket_url: str = "wss://external-api-ws.kalshi.com/trade-api/ws/v2"
    """WebSocket endpoint; its path is part of what is signed."""
    rest_url: str = "https://external-api.kalshi.com/trade-api/v2"
    """Base of the REST API, without a slash at the end."""
    key_id: str = ""
    """Id of the API key (a UUID); scope `read` is enough."""
    key_path: str = ""
    """File with the private key in PEM; or leave it empty and put the PEM in $KALSHI_KEY_PEM."""
    use_yes_price: bool = False
    """Ask for NO-side levels in YES prices; always sent explicitly, the books are the same either way."""
    connections: int = 1
    """WebSocket connections among which the markets are spread."""
    max_clock_skew_ms: int = 5_000
    """Clock difference to the exchange, in milliseconds, beyond which the plant does not start."""


class MarketsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[markets]: the union of what is chosen here is followed."""

    section: ClassVar[str] = "markets"

    tickers: tuple[str, ...] = ()
    """Markets by ticker."""
    series: tuple[str, ...] = ()
    """Every open market of these series, also those that open later."""
    events: tuple[str, ...] = ()
    """Every open market of these events."""
    all_open: bool = False
    """Every open market of the exchange, without combos."""
    include_combos: bool = False
    """With all_open: the multivariate (combo) markets too."""

    @property
    def is_empty(self) -> bool:
        """True if nothing is chosen."""
        return not (self.tickers or self.series or self.events or self.all_open)

    def require_selection(self) -> None:
        """Raise `ConfigurationError` if no market is chosen."""
        if self.is_empty:
            raise ConfigurationError(
                "no market is chosen: set one of markets.tickers, markets.series, markets.events or "
                "markets.all_open, e.g. --set markets.series=KXBTC15M"
            )


class ChannelsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[channels]: what is followed besides the order books."""

    section: ClassVar[str] = "channels"

    trade: bool = True
    """Trades of the chosen markets."""
    ticker: bool = True
    """The exchange's own ticker (last, volume, open interest) of the chosen markets."""
    lifecycle: bool = True
    """Market and event lifecycle of the whole exchange; keeps a choice by series, event or all_open current."""


class PublishConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[publish]: UDP multicast. Stream n (1 trade, 2 bbo, 3 ticker, 4 delta, 5 status) is group + n - 1."""

    section: ClassVar[str] = "publish"

    interface: str = "127.0.0.1"
    """IPv4 address of the interface of line A."""
    group_a: str = "239.192.77.1"
    """First multicast group of line A; five groups in a row are used."""
    group_b: str = ""
    """First group of line B, e.g. 239.192.78.1, which carries the same datagrams; empty: no line B."""
    interface_b: str = ""
    """IPv4 address of the interface of line B; empty: as line A."""
    port: int = 26400
    """UDP port of every group."""
    ttl: int = 0
    """How many networks a datagram may cross: 0 never leaves the host, 1 stays on the local network."""
    publisher: int = 1
    """Number of this plant in every datagram, for recorders that join several plants."""
    key_path: str = ""
    """File of datagram keys (`tickerplant key make`): datagrams are signed; empty: they are not."""

    def groups(self, line: str = "a") -> tuple[str, ...]:
        """The groups of line "a" or "b" in the order of the streams; empty if the line is off."""
        base = {"a": self.group_a, "b": self.group_b}[line]
        if not base:
            return ()
        first = int(ipaddress.IPv4Address(base))
        return tuple(str(ipaddress.IPv4Address(first + stream - 1)) for stream in Stream)

    def interface_of(self, line: str) -> str:
        """The interface address of line "a" or "b"."""
        return self.interface_b if line == "b" and self.interface_b else self.interface

    def interface_key(self, line: str) -> str:
        """The key that sets the interface address of line "a" or "b"."""
        return "publish.interface_b" if line == "b" and self.interface_b else "publish.interface"


class VerifyConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[verify]: how books are checked that nothing says are wrong."""

    section: ClassVar[str] = "verify"

    interval_ms: int = 100
    """Milliseconds between two `BookVerify`, of one LIVE book after the other; 0: none."""
    upstream_interval_ms: int = 1_000
    """Milliseconds between two books compared with the exchange's, on each connection; 0: none."""


class MetricsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[metrics]: the HTTP endpoint with /metrics, /health and /ready."""

    section: ClassVar[str] = "metrics"

    enabled: bool = True
    """Serve the endpoint."""
    address: str = "127.0.0.1"
    """IPv4 address to listen on; 0.0.0.0 is every interface."""
    port: int = 26480
    """TCP port to listen on; 0 takes a free one and logs it."""


class TicklogConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[ticklog]: everything published is kept here before it is sent."""

    section: ClassVar[str] = "ticklog"

    enabled: bool = True
    """Keep the log; without it nothing that a subscriber misses can be repaired."""
    directory: str = ""
    """Folder of the log; empty: `ticklog` in the state directory."""
    segment_max_bytes: int = 256 * 1024**2
    """Size at which another segment file begins."""
    segment_max_s: int = 3_600
    """Age, in seconds, at which another segment file begins."""
    fsync: str = "interval"
    """interval: synced to disk each fsync_interval_ms; never: when the kernel likes."""
    fsync_interval_ms: int = 1_000
    """What a power failure can cost at most, in milliseconds."""
    retain_s: int = 86_400
    """Age, in seconds, beyond which segments are deleted."""
    retain_bytes: int = 16 * 1024**3
    """Size of all segments beyond which the oldest are deleted."""
    max_bytes: int = 32 * 1024**3
    """Size of all segments at which logging stops, if nothing may be deleted."""


class RecoveryConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[recovery]: subscribers get here what they missed, out of the tick log."""

    section: ClassVar[str] = "recovery"

    enabled: bool = True
    """Let `run` start recovery with the plant; off where it runs as a service of its own."""
    address: str = "127.0.0.1"
    """IPv4 address to serve on; 0.0.0.0 is every interface."""
    port: int = 26410
    """UDP and TCP port; 0 takes a free one and logs it."""
    metrics_port: int = 26481
    """TCP port of its own /metrics, /health and /ready, on metrics.address; 0 takes a free one and logs it."""
    client_bytes_per_second: int = 64 * 1024**2
    """What one address gets at most, over UDP and as much again over TCP."""
    total_bytes_per_second: int = 256 * 1024**2
    """What all together get at most, over UDP and as much again over TCP."""
    connections_max: int = 128
    """TCP connections at a time."""
    connections_per_client_max: int = 64
    """TCP connections of one address at a time."""
    checkpoint_interval_s: int = 60
    """How often the books are kept on disk, in seconds, so that a restart reads no more log than that."""
    niceness: int = 5
    """How far recovery stands back behind the plant when both want the processor; 0: not at all."""


class StoreConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[store]: everything published becomes rows, in Parquet files or in QuestDB."""

    section: ClassVar[str] = "store"

    enabled: bool = True
    """Let `run` start the store with the plant; off where it runs as a service of its own."""
    backend: str = "parquet"
    """parquet: files in a folder; questdb: a server."""
    directory: str = ""
    """Folder of the Parquet files and of the dead letters; empty: `store` in the state directory."""
    close_s: int = 60
    """parquet: age, in seconds, at which files are closed; then they can be read."""
    close_rows: int = 1_000_000
    """parquet: rows at which files are closed earlier."""
    conf: str = "http::addr=127.0.0.1:9000;"
    """questdb: the client's conf string, without password."""
    username: str = ""
    """questdb: user name; empty with a password file: what is in the file is a token."""
    password_path: str = ""
    """questdb: file with the password, or token, on its first line; empty: the server wants none."""
    batch_ms: int = 40
    """questdb: age, in milliseconds, at which rows are sent."""
    batch_rows: int = 50_000
    """questdb: rows at which they are sent earlier."""
    ttl_days: int = 90
    """Age, in days, at which rows of the feed are deleted; 0: never. For QuestDB with `schema apply`."""
    book_snapshot_interval_s: int = 60
    """How often the books that changed are stored whole, in seconds; 0: never."""
    metrics_port: int = 26482
    """TCP port of its own /metrics, /health and /ready, on metrics.address; 0 takes a free one and logs it."""
    niceness: int = 10
    """How far the store stands back behind the plant when both want the processor; 0: not at all."""


class ArchiveConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[archive]: whole days of rows in an object store, for ever."""

    section: ClassVar[str] = "archive"

    url: str = ""
    """s3://bucket/prefix or file:///folder; empty: the folder `archive` in the state directory."""
    endpoint: str = ""
    """URL of an S3 that is not Amazon's; empty: Amazon's, or $AWS_ENDPOINT_URL."""
    region: str = ""
    """Region of the bucket; empty: $AWS_REGION, else the client's default."""
    directory: str = ""
    """Folder of files on their way; empty: `archiving` in the state directory."""
    hot_hours: int = 24
    """questdb: hours after which an archived day is turned into Parquet inside the database."""


class HdbConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[hdb]: a QuestDB server of its own for archived days."""

    section: ClassVar[str] = "hdb"

    conf: str = ""
    """Conf string of the historical server, as store.conf; empty: there is none."""
    username: str = ""
    """User name; empty with a password file: what is in the file is a token."""
    password_path: str = ""
    """File with the password, or token, on its first line; empty: the server wants none."""
    days: int = 0
    """Days up to which archived ones are loaded; 0: all."""


class ProcessorConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[processor]: how the plant uses its processor."""

    section: ClassVar[str] = "processor"

    busy_poll: bool = False
    """Never sleep: the plant takes the whole of one core, and frames do not wait for it to wake up."""


class CaptureConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[capture]: everything that goes into the plant, as it came, to be looked at and played again."""

    section: ClassVar[str] = "capture"

    enabled: bool = False
    """Keep it."""
    directory: str = ""
    """Folder of it; empty: `capture` in the state directory."""
    segment_max_bytes: int = 256 * 1024**2
    """Size at which another segment file begins."""
    segment_max_s: int = 3_600
    """Age, in seconds, at which another segment file begins."""
    retain_s: int = 7 * 86_400
    """Age, in seconds, beyond which segments are deleted."""
    max_bytes: int = 16 * 1024**3
    """Size of all segments beyond which the oldest are deleted."""
    compress: bool = True
    """Compress segments (gzip) once they are closed."""


class LogConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[log]: written to standard error."""

    section: ClassVar[str] = "log"

    level: str = "info"
    """Least level that is written: debug, info, warning or error."""
    format: str = "console"
    """console for people, json for machines (one object a line)."""


class StateConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[state]: what must survive a restart."""

    section: ClassVar[str] = "state"

    directory: str = ""
    """Folder for it; empty: $STATE_DIRECTORY (set by systemd), else ~/.local/state/tickerplant."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration; `Config()` is the defaults."""

    exchange: ExchangeConfig = msgspec.field(default_factory=ExchangeConfig)
    """Where the exchange is and who we are."""
    markets: MarketsConfig = msgspec.field(default_factory=MarketsConfig)
    """Which markets are followed."""
    channels: ChannelsConfig = msgspec.field(default_factory=ChannelsConfig)
    """What is followed besides the order books."""
    publish: PublishConfig = msgspec.field(default_factory=PublishConfig)
    """Multicast groups."""
    verify: VerifyConfig = msgspec.field(default_factory=VerifyConfig)
    """How books are checked."""
    metrics: MetricsConfig = msgspec.field(default_factory=MetricsConfig)
    """HTTP endpoint for Prometheus."""
    ticklog: TicklogConfig = msgspec.field(default_factory=TicklogConfig)
    """The tick log."""
    recovery: RecoveryConfig = msgspec.field(default_factory=RecoveryConfig)
    """Recovery."""
    store: StoreConfig = msgspec.field(default_factory=StoreConfig)
    """Rows of everything published."""
    archive: ArchiveConfig = msgspec.field(default_factory=ArchiveConfig)
    """Whole days in an object store."""
    hdb: HdbConfig = msgspec.field(default_factory=HdbConfig)
    """A server for archived days."""
    capture: CaptureConfig = msgspec.field(default_factory=CaptureConfig)
    """Everything that goes in, kept as it came."""
    processor: ProcessorConfig = msgspec.field(default_factory=ProcessorConfig)
    """Latency against power."""
    log: LogConfig = msgspec.field(default_factory=LogConfig)
    """Log output."""
    state: StateConfig = msgspec.field(default_factory=StateConfig)
    """Where state is kept."""

    def __post_init__(self) -> None:
        """Check what two keys must fulfil together. Raises `InvalidValueError`."""
        shared = set(self.publish.groups("a")) & set(self.publish.groups("b"))
        if shared:
            raise InvalidValueError(
                "publish.group_b",
                self.publish.group_b,
                f"line B would share {min(shared)} with line A; leave five groups between the two",
            )
        ticklog = self.ticklog
        if not ticklog.segment_max_bytes <= ticklog.retain_bytes <= ticklog.max_bytes:
            raise InvalidValueError(
                "ticklog.retain_bytes",
                ticklog.retain_bytes,
                "must be at least ticklog.segment_max_bytes and at most ticklog.max_bytes",
            )
        if self.capture.max_bytes < 2 * self.capture.segment_max_bytes:
            raise InvalidValueError(
                "capture.max_bytes",
                self.capture.max_bytes,
                "must be at least twice capture.segment_max_bytes",
            )


SECTIONS: Mapping[str, type[Section]] = {
    field.name: field.type for field in msgspec.structs.fields(Config)
}
"""The struct of each section, by name, in the order of the file."""


def credentials(config: Config, environ: Mapping[str, str]) -> Credentials:
    """The API key's id and where the key itself is. Raises `CredentialsError`; reads no file."""
    exchange = config.exchange
    pem = environ.get(KEY_PEM_VARIABLE, "")
    if not exchange.key_id:
        raise CredentialsError(
            "exchange.key_id is not set: put the id of your Kalshi API key in [exchange] key_id "
            "or in TICKERPLANT__EXCHANGE__KEY_ID"
        )
    if pem and exchange.key_path:
        raise CredentialsError(
            f"exchange.key_path and {KEY_PEM_VARIABLE} are both set: unset one of them"
        )
    if pem:
        return Credentials(key_id=exchange.key_id, key_path=None, pem=pem.encode())
    if not exchange.key_path:
        raise CredentialsError(
            "exchange.key_path is not set: name the file with the private key (PEM) there, "
            f"or put the PEM itself in {KEY_PEM_VARIABLE}"
        )
    path = Path(exchange.key_path).expanduser()
    return Credentials(key_id=exchange.key_id, key_path=path, pem=None)


def mask(text: str) -> str:
    """`text` with all but its first four characters hidden."""
    return f"{text[:4]}…" if len(text) > 8 else "…"
