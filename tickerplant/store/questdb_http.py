"""SQL over QuestDB's HTTP interface: for the schema, for questions, and for what the ILP client does not tell.

Blocking, one connection for each statement, unless `QuestDbHttp.reader` was asked for one that keeps them.
"""

import base64
import copy
import http.client
import json
import ssl
from pathlib import Path
from typing import IO, Any, NamedTuple, Self
from urllib.parse import urlencode

from tickerplant.errors import CredentialsError, StoreError, StoreUnavailableError
from tickerplant.limits import (
    ARCHIVE_CHUNK_BYTES,
    PARQUET_ROW_GROUP_ROWS,
    QUESTDB_ANSWER_MAX_BYTES,
    QUESTDB_EXPORT_TIMEOUT_S,
    QUESTDB_KEPT_CONNECTIONS,
    QUESTDB_REQUEST_TIMEOUT_S,
    SECRET_MAX_BYTES,
)

DEFAULT_PORT = 9000
_UNAUTHORIZED = (401, 403)
_SERVER_FAULT = 500
_EXPORT_OPTIONS = {
    # It is written again, smaller: what matters is time, of the server and of reading it.
    "compression_codec": "SNAPPY",
    "row_group_size": str(PARQUET_ROW_GROUP_ROWS),
}


class AnswerColumn(NamedTuple):
    """A column of an answer, its type in QuestDB's words, and the dimensions of an array."""

    name: str
    type: str
    dimensions: int


class Login(NamedTuple):
    """Who the store is for QuestDB; an empty user name with a secret: the secret is a token."""

    username: str = ""
    secret: str = ""

    def header(self) -> dict[str, str]:
        """The HTTP header; empty without secret."""
        if not self.secret:
            return {}
        if not self.username:
            return {"Authorization": f"Bearer {self.secret}"}
        pair = base64.b64encode(f"{self.username}:{self.secret}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}

    def sender_arguments(self) -> dict[str, str]:
        """For `questdb.Sender.from_conf`."""
        if not self.secret:
            return {}
        if not self.username:
            return {"token": self.secret}
        return {"username": self.username, "password": self.secret}


def read_login(username: str, password_path: str, section: str = "store") -> Login:
    """With the first line of the file. Raises `CredentialsError`, which never shows it.

    `section` of the configuration names it.
    """
    if not password_path:
        return Login(username)
    path = Path(password_path).expanduser()
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_MAX_BYTES + 1)
        secret = content.decode().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise CredentialsError(
            f"password file {path}: {reason}: correct {section}.password_path"
        ) from None
    if not secret or len(content) > SECRET_MAX_BYTES:
        raise CredentialsError(
            f"password file {path}: its first line must be the password, or token, for QuestDB"
        )
    return Login(username, secret)


class QuestDbHttp:
    """A server by its conf string, `http::addr=host:port;…`."""

    def __init__(self, conf: str, login: Login | None = None) -> None:
        """`conf` was checked (`config_checks`). Opens nothing."""
        protocol, _, rest = conf.partition("::")
        pairs = (part.partition("=") for part in rest.split(";") if part)
        self._options = {key: value for key, _, value in pairs}
        self._is_https = protocol == "https"
        host, _, port = self._options["addr"].rpartition(":")
        if not port.isdecimal():
            host, port = self._options["addr"], str(DEFAULT_PORT)
        self._host, self._port = host, int(port)
        self._login = login or Login()
        self._idle: list[http.client.HTTPConnection] | None = None
        self.address = f"{protocol}://{self._host}:{self._port}"

    def reader(self) -> Self:
        """The same server for questions alone, over connections that are used again: `close` it.

        Nothing that must not be done twice may be asked of it: what a connection breaks under is asked once more.
        """
        reader = copy.copy(self)
        reader._idle = []  # of this class
        return reader

    def close(self) -> None:
        """Close the connections that were kept; harmless the second time."""
        while self._idle:
            self._idle.pop().close()

    def execute(self, sql: str, timeout_s: float = QUESTDB_REQUEST_TIMEOUT_S) -> list[list[Any]]:
        """Run a statement; the rows of its answer, if it has any.

        Raises `StoreUnavailableError` (not reachable, no answer, an error of the server's own), `StoreError` (the
        statement is refused), `CredentialsError`.
        """
        status, body = self._request(f"/exec?{urlencode({'query': sql})}", timeout_s)
        if status in _UNAUTHORIZED:
            raise CredentialsError(
                f"QuestDB {self.address} refuses user {self._login.username or '(none)'}: correct store.username "
                "and the file of store.password_path"
            )
        try:
            answer = json.loads(body)
        except ValueError:
            answer = {"error": f"HTTP status {status} without an answer"}
        error = answer.get("error")
        if error is None:
            rows: list[list[Any]] = answer.get("dataset", [])
            return rows
        text = f"QuestDB {self.address}: {' '.join(str(error).split())[:300]}"
        if status >= _SERVER_FAULT:
            raise StoreUnavailableError(text)
        raise StoreError(f"{text}; the statement was: {' '.join(sql.split())[:300]}")

    def export(self, sql: str, path: Path) -> None:
        """Write the rows of a query into the new file `path`, Parquet made by the server. Raises as `execute`.

        What QuestDB 9.3.4 writes may lack values (see `questdb_archive`): compare it.
        """
        query = urlencode({"query": sql, "fmt": "parquet", **_EXPORT_OPTIONS})
        connection = self._connection(QUESTDB_EXPORT_TIMEOUT_S)
        try:
            connection.request("GET", f"/exp?{query}", headers=self._login.header())
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                words = response.read(QUESTDB_ANSWER_MAX_BYTES).decode(errors="replace")
                kind = StoreUnavailableError if response.status >= _SERVER_FAULT else StoreError
                raise kind(f"QuestDB {self.address}: {' '.join(words.split())[:300]}")
            with path.open("wb") as file:
                while chunk := response.read(ARCHIVE_CHUNK_BYTES):
                    file.write(chunk)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StoreUnavailableError(f"QuestDB {self.address}: {reason}: try again") from error
        finally:
            connection.close()

    def export_csv(self, sql: str, output: IO[bytes]) -> None:
        """Write the answer to a SELECT as CSV, null without quotes and text within; nothing else than SELECT is taken.

        Raises as `execute`, and `OSError` of `output`.
        """
        path = f"/exp?{urlencode({'query': sql})}"
        connection, response = self._ask(path, QUESTDB_EXPORT_TIMEOUT_S)
        is_whole = False
        try:
            if response.status != http.HTTPStatus.OK:
                raise self._refusal(response.status, self._read(response), sql)
            while chunk := self._read(response):
                output.write(chunk)
            is_whole = True
        finally:
            self._let_go(connection, is_whole=is_whole)

    def types_of(self, sql: str) -> list[AnswerColumn]:
        """The columns of the answer to a SELECT. Raises as `execute`."""
        return self.first_rows(sql, 0)[0]

    def first_rows(self, sql: str, count: int) -> tuple[list[AnswerColumn], list[list[Any]]]:
        """The columns and the first rows, at most `count`, of the answer to a SELECT. Raises as `execute`."""
        path = f"/exec?{urlencode({'query': sql, 'limit': count})}"
        status, body = self._request(path, QUESTDB_EXPORT_TIMEOUT_S)
        if status != http.HTTPStatus.OK:
            raise self._refusal(status, body, sql)
        answer = json.loads(body)
        columns = [
            AnswerColumn(one["name"], one["type"], one.get("dim", 0)) for one in answer["columns"]
        ]
        return columns, answer["dataset"]

    def _refusal(self, status: int, body: bytes, sql: str) -> StoreError | CredentialsError:
        if status in _UNAUTHORIZED:
            return CredentialsError(
                f"QuestDB {self.address} refuses user {self._login.username or '(none)'}: correct store.username "
                "and the file of store.password_path"
            )
        try:
            words = str(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError):
            words = f"HTTP status {status} without an answer"
        text = f"QuestDB {self.address}: {' '.join(words.split())[:300]}"
        if status >= _SERVER_FAULT:
            return StoreUnavailableError(text)
        return StoreError(f"{text}; the statement was: {' '.join(sql.split())[:300]}")

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read(ARCHIVE_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> StoreUnavailableError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return StoreUnavailableError(
            f"QuestDB {self.address}: {reason}: start the server, or correct store.conf"
        )

    def _request(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        connection, response = self._ask(path, timeout_s)
        is_whole = False
        try:
            body = response.read(QUESTDB_ANSWER_MAX_BYTES)
            is_whole = response.isclosed() and response.status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            self._let_go(connection, is_whole=is_whole)
        return response.status, body

    def _ask(
        self, path: str, timeout_s: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The answer begins; `_let_go` of the connection when it was read."""
        while True:
            is_used = bool(self._idle)
            connection = self._idle.pop() if self._idle else self._connection(timeout_s)
            try:
                if connection.sock is not None:
                    connection.sock.settimeout(timeout_s)
                connection.request("GET", path, headers=self._login.header())
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # The server may have closed it meanwhile.
                if not is_used or isinstance(error, TimeoutError):
                    raise self._unreachable(error) from error

    def _let_go(self, connection: http.client.HTTPConnection, *, is_whole: bool) -> None:
        """Keep the connection if its answer was read to the end, and connections are kept."""
        if is_whole and self._idle is not None and len(self._idle) < QUESTDB_KEPT_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if not self._is_https:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        roots = self._options.get("tls_roots") or None
        try:
            context = ssl.create_default_context(cafile=roots)
        except OSError as error:
            raise StoreError(f"tls_roots {roots} in store.conf: {error.strerror}") from error
        if self._options.get("tls_verify") == "unsafe_off":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout_s, context=context
        )
