"""From the configuration: source, object store and work folder of the archive."""

from collections.abc import Mapping
from pathlib import Path

from tickerplant.config import Config
from tickerplant.runtime.logfolder import log_folder
from tickerplant.store.archive_source import ArchiveSource, FolderSource
from tickerplant.store.archiver import WorkFolder
from tickerplant.store.object_store import ObjectStore, archive_url
from tickerplant.store.parquet_folder import store_folder
from tickerplant.store.questdb_archive import QuestDbArchiveSource
from tickerplant.store.questdb_http import QuestDbHttp, read_login
from tickerplant.store.restore import HistoricalServer, Restorer

_HOUR_NS = 3_600 * 1_000_000_000
WORK_FOLDER = "archiving"
"""Inside the state directory."""


def open_archive_source(config: Config, state_directory: Path) -> ArchiveSource:
    """The configured store. Raises `CredentialsError`."""
    log = log_folder(config.ticklog.directory, state_directory)
    if config.store.backend == "parquet":
        return FolderSource(store_folder(config.store.directory, state_directory), log)
    store = config.store
    server = QuestDbHttp(store.conf, read_login(store.username, store.password_path))
    hot_ns = config.archive.hot_hours * _HOUR_NS
    work = work_folder(config, state_directory).path
    return QuestDbArchiveSource(server, log, work, hot_ns=hot_ns)


def open_historical(
    config: Config, state_directory: Path, store: ObjectStore
) -> HistoricalServer | None:
    """The server of [hdb]; None: there is none. Raises `CredentialsError`."""
    hdb = config.hdb
    if not hdb.conf:
        return None
    login = read_login(hdb.username, hdb.password_path, "hdb")
    work = work_folder(config, state_directory).path
    restorer = Restorer(store, hdb.conf, login, work)
    hot_ns = config.archive.hot_hours * _HOUR_NS
    return HistoricalServer(restorer, work, keep_days=hdb.days, hot_ns=hot_ns)


def open_object_store(
    config: Config, state_directory: Path, environ: Mapping[str, str]
) -> ObjectStore:
    """The configured one. Raises `StoreError`, `StoreUnavailableError`."""
    archive = config.archive
    url = archive_url(archive.url, state_directory)
    return ObjectStore(url, endpoint=archive.endpoint, region=archive.region, environ=environ)


def work_folder(config: Config, state_directory: Path) -> WorkFolder:
    """The configured one, neither made nor locked."""
    directory = config.archive.directory
    path = Path(directory).expanduser() if directory else state_directory / WORK_FOLDER
    return WorkFolder(path)
