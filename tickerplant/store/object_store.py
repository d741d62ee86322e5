"""The object store: an S3 bucket, or a folder, by its URL.

Credentials are never configuration: the client takes them from the environment ($AWS_ACCESS_KEY_ID,
$AWS_SECRET_ACCESS_KEY, $AWS_SESSION_TOKEN, or what the machine's role gives).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from tickerplant.errors import StoreError, StoreUnavailableError
from tickerplant.limits import (
    ARCHIVE_CHUNK_BYTES,
    ARCHIVE_REQUEST_RETRIES,
    ARCHIVE_REQUEST_TIMEOUT_S,
    MANIFEST_MAX_BYTES,
)
from tickerplant.store.parquet_folder import TEMPORARY_SUFFIX, sync_file, sync_folder

_CREDENTIALS = "AWS_ACCESS_KEY_ID"


class StoredObject(NamedTuple):
    """An object's path below the URL, and its size."""

    path: str
    size_bytes: int


class ObjectStore:
    """Objects below one URL. Every method raises `StoreUnavailableError` (not now) and `StoreError` (refused)."""

    def __init__(
        self, url: str, *, endpoint: str = "", region: str = "", environ: Mapping[str, str]
    ) -> None:
        """`url` is `s3://bucket/prefix` or `file:///folder`, `endpoint` that of an S3 not Amazon's. Asks nothing."""
        self.url = url.rstrip("/")
        parts = urlsplit(url)
        self._folder: Path | None = None
        if parts.scheme == "file":
            self._folder = Path(unquote(parts.path))
            self._prefix = ""
            with self._refusals("its folder"):
                self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
                self._store: Any = LocalStore(self._folder, mkdir=True)
        else:
            self._prefix = parts.path.strip("/")
            with self._refusals("its settings"):
                self._store = _s3_store(parts.netloc, endpoint, region, environ)

    def put_file(self, path: Path, name: str, tell: Callable[[int], None] = lambda _: None) -> None:
        """Store a file under `name`, whole or not at all, and read it back; `tell` hears of bytes read back."""
        with path.open("rb") as file, self._bucket(name):
            obstore.put(self._store, self._at(name), file, use_multipart=None)
            self._sync(name)
        with path.open("rb") as file:
            wanted = hashlib.file_digest(file, "sha256").hexdigest()
        if self.sha256(name, tell) != wanted:
            raise StoreUnavailableError(
                f"{self.url}/{name} was not stored as it was sent: try again"
            )

    def put_bytes(self, content: bytes, name: str) -> None:
        """Store a small object under `name`, whole or not at all; over what is there."""
        with self._bucket(name):
            obstore.put(self._store, self._at(name), content)
            self._sync(name)

    def get_bytes(self, name: str) -> bytes | None:
        """A small object; None if there is none."""
        try:
            with self._refusals(name):
                result = obstore.get(self._store, self._at(name))
                if result.meta["size"] > MANIFEST_MAX_BYTES:
                    raise StoreError(f"{self.url}/{name} is larger than {MANIFEST_MAX_BYTES} bytes")
                return bytes(result.bytes())
        except FileNotFoundError:
            return None

    def get_file(self, name: str, path: Path) -> None:
        """Fetch an object into a file, which appears whole. Raises also `FileNotFoundError`."""
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        with temporary.open("wb") as file:
            for chunk in self._chunks(name):
                file.write(chunk)
        temporary.replace(path)

    def sha256(self, name: str, tell: Callable[[int], None] = lambda _: None) -> str:
        """Read an object; its SHA-256. Raises also `FileNotFoundError`."""
        total = hashlib.sha256()
        for chunk in self._chunks(name):
            total.update(chunk)
            tell(len(chunk))
        return total.hexdigest()

    def size_bytes(self, name: str) -> int | None:
        """Of an object; None if there is none."""
        try:
            with self._refusals(name):
                return int(obstore.head(self._store, self._at(name))["size"])
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> list[StoredObject]:
        """Everything below `folder`, sorted."""
        found = []
        with self._bucket(folder):
            for batch in obstore.list(self._store, self._at(folder)):
                for one in batch:
                    path = str(one["path"])
                    if self._prefix:
                        path = path.removeprefix(self._prefix + "/")
                    found.append(StoredObject(path, int(one["size"])))
        return sorted(found)

    def delete(self, name: str) -> None:
        """Remove an object; harmless if it is gone."""
        try:
            with self._refusals(name):
                obstore.delete(self._store, self._at(name))
        except FileNotFoundError:
            pass

    def _at(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _chunks(self, name: str) -> Iterator[bytes]:
        with self._refusals(name):
            result = obstore.get(self._store, self._at(name))
            for chunk in result.stream(min_chunk_size=ARCHIVE_CHUNK_BYTES):
                yield bytes(chunk)

    def _sync(self, name: str) -> None:
        """Make an object in a folder outlast a power cut; a bucket has done so when it answers."""
        if self._folder is None:
            return
        path = self._folder / name
        sync_file(path)
        for folder in path.parents:
            sync_folder(folder)
            if folder == self._folder:
                break

    @contextmanager
    def _bucket(self, name: str) -> Iterator[None]:
        """Where nothing of that name need exist, but the bucket must."""
        try:
            with self._refusals(name):
                yield
        except FileNotFoundError as error:
            raise StoreError(
                f"archive {self.url}: there is no such bucket: make it, or correct archive.url"
            ) from error

    @contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        where = f"archive {self.url}: {name}"
        try:
            yield
        except (exceptions.UnauthenticatedError, exceptions.PermissionDeniedError) as error:
            raise StoreError(
                f"{where}: access is refused ({_words(error)}): correct ${_CREDENTIALS} and its secret, or the "
                "rights of that key"
            ) from error
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            raise FileNotFoundError(f"{where} is missing") from error
        except (exceptions.UnknownConfigurationKeyError, exceptions.InvalidPathError) as error:
            raise StoreError(f"{where}: {_words(error)}") from error
        except (exceptions.BaseError, OSError) as error:
            raise StoreUnavailableError(f"{where}: {_words(error)}") from error


def _s3_store(bucket: str, endpoint: str, region: str, environ: Mapping[str, str]) -> S3Store:
    keys = {
        "access_key_id": environ.get(_CREDENTIALS),
        "secret_access_key": environ.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": environ.get("AWS_SESSION_TOKEN"),
        "endpoint": endpoint or environ.get("AWS_ENDPOINT_URL"),
        "region": region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
    }
    config: Any = {key: value for key, value in keys.items() if value}
    if endpoint and not {"access_key_id", "secret_access_key"} <= config.keys():
        # Else the client would look for a role of the machine, which only Amazon's have.
        raise StoreError(
            f"archive at {endpoint}: no credentials: set ${_CREDENTIALS} and $AWS_SECRET_ACCESS_KEY"
        )
    return S3Store(
        bucket,
        config=config,
        client_options={
            "allow_http": str(config.get("endpoint", "")).startswith("http://"),
            "timeout": timedelta(seconds=ARCHIVE_REQUEST_TIMEOUT_S),
        },
        retry_config={
            "max_retries": ARCHIVE_REQUEST_RETRIES,
            "retry_timeout": timedelta(seconds=ARCHIVE_REQUEST_TIMEOUT_S),
        },
    )


def archive_url(url: str, state_directory: Path) -> str:
    """The URL of `archive.url`; empty: the folder `archive` in the state directory."""
    return url or (state_directory / "archive").absolute().as_uri()


def _words(error: Exception) -> str:
    return " ".join(str(error).partition("Debug source")[0].split())[:300]
