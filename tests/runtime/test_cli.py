"""The command line as a user meets it: help, errors in one line, exit codes."""

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tickerplant import __version__, cli

EXTRA_BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from tickerplant.cli import main
sys.exit(main(%r))
"""

pytestmark = pytest.mark.usefixtures("no_configuration")


def run_without_extra(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process in which nothing of the extra `daemon` can be imported."""
    code = EXTRA_BLOCKED % (set(cli.EXTRA_MODULES), list(arguments))
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30, check=False
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "tickerplant", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def command_names() -> list[str]:
    return [name.replace("_", "-") for name in cli.COMMANDS]


@pytest.mark.parametrize("command", command_names())
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert f"tickerplant {command}" in text


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "example" in text
    for command in command_names():
        assert command in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tickerplant {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["check-config", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["check-config", "--conf", "x"], "unrecognized arguments"),
        (["check-config", "--set"], "expected one argument"),
        (["check-config", "--set", "log.levl=debug"], "did you mean log.level?"),
        (["check-config", "--config", "none.toml"], "none.toml: does not exist"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "error: " in output.err
    assert part in output.err


def test_help_imports_nothing_slow_or_optional() -> None:
    """The start-up time of every command: what `--help` imports is what all of them pay for."""
    code = (
        "import sys\nfrom tickerplant.cli import main\nmain(['--help'])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    imported = set(done.stderr.split())
    assert "tickerplant" in imported
    slow = {"asyncio", "msgspec", "uvloop", "email", "tomllib", "sqlite3", "multiprocessing"}
    assert not imported & (slow | cli.EXTRA_MODULES)


@pytest.mark.parametrize(
    ("process", "unwanted"),
    [
        ("tickerplant.runtime.daemon", {"rich", "pyarrow", "pandas", "numpy", "duckdb"}),
        ("tickerplant.runtime.recovery_process", {"rich", "pyarrow", "numpy", "cryptography"}),
        ("tickerplant.store.process, tickerplant.store.parquet_backend", {"rich", "pandas"}),
    ],
)
def test_a_process_imports_nothing_slow_that_it_does_not_need(
    process: str, unwanted: set[str]
) -> None:
    """Each of them is a tenth of a second and more, of the plant and of each process beside it."""
    code = (
        f"import sys, {process}\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "import rich"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    imported = set(done.stdout.split())
    assert "structlog" in imported
    assert not imported & unwanted


def test_what_is_wrong_with_the_configuration_is_said_before_the_plant_is_imported() -> None:
    code = (
        "import sys\nfrom tickerplant.cli import main\ncode = main(['run', '--all-open'])\n"
        "print(code, *sorted(name.partition('.')[0] for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    code_told, *imported = done.stdout.split()
    assert (code_told, "exchange.key_id is not set" in done.stderr) == ("2", True)
    assert not set(imported) & {"asyncio", "uvloop", "aiohttp", "cryptography", "structlog"}


def test_base_install_has_help_and_check_config() -> None:
    assert run_without_extra("--help").returncode == 0
    done = run_without_extra("check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert "[exchange]" in done.stdout


def test_daemon_command_on_a_base_install_says_so_in_one_line() -> None:
    done = run_without_extra("doctor")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tickerplant: error: this command needs ")
    assert "pip install 'kalshi-tickerplant[daemon]'" in done.stderr


def test_a_missing_module_of_our_own_is_not_blamed_on_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_arguments: object) -> int:
        importlib.import_module("tickerplant.no_such_module")
        return 0

    monkeypatch.setattr("tickerplant.commands.check_config.run", broken)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        cli.main(["check-config"])


def test_check_config_prints_toml_of_the_effective_values(
    no_configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = no_configuration / "mine.toml"
    file.write_text('[exchange]\nkey_id = "0a1b2c3d-secret-key-id"\n[markets]\nseries = ["KXÄ"]\n')
    assert cli.main(["check-config", "--config", str(file), "--set", "markets.series=KXA"]) == 0
    text = capsys.readouterr().out
    document = tomllib.loads(text)
    assert document["markets"]["series"] == ["KXA"]
    assert document["publish"]["group_a"] == "239.192.77.1"
    assert 'series = ["KXA"]  # --set' in text
    assert f'key_id = "0a1b…"  # {file}' in text
    assert "secret-key-id" not in text
    assert "# `tickerplant run` would refuse: exchange.key_path is not set" in text
    assert f"# state directory: {no_configuration}/.local/state/tickerplant  (default)" in text


def test_check_config_does_not_show_a_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KALSHI_KEY_PEM", "-----BEGIN PRIVATE KEY-----\nsecret\n")
    monkeypatch.setenv("TICKERPLANT__EXCHANGE__KEY_ID", "0a1b2c3d-0000")
    assert cli.main(["check-config", "--set", "markets.all_open=true"]) == 0
    text = capsys.readouterr().out
    assert "secret" not in text
    assert "# private key: taken from KALSHI_KEY_PEM (not shown)" in text
    assert "would refuse" not in text


def test_output_that_nobody_reads_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tickerplant", "check-config"],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


def test_a_broken_pipe_that_is_not_the_output_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_arguments: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("tickerplant.commands.check_config.run", broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["check-config"])


def test_interrupt_is_130() -> None:
    """A real SIGINT in a command that waits: `check-config` reading a pipe that nobody writes."""
    code = (
        "import os, sys, threading, signal\n"
        "reading, writing = os.pipe()\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "from tickerplant.cli import main\n"
        "sys.exit(main(['check-config', '--config', f'/dev/fd/{reading}']))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == ""


def test_module_and_script_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("tickerplant")
    assert script.exists()
    by_script = subprocess.run(
        [script, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    assert by_script.stdout == run("--version").stdout == f"tickerplant {__version__}\n"
