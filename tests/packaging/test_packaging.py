"""The wheel as its users get it: a base install in a fresh environment."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"tickerplant", "tickerplant_kalshi", "tickerplant_kalshi_sim", "tickerplant_subscriber"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, timeout=100)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def base_install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment that holds the base install and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder)
    words = ("install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel))
    done = run(*pip_of(folder / "bin"), *words)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def pip_of(bin_folder: Path) -> tuple[str, ...]:
    """Our own pip for the environment of `bin_folder`, which has none: unpacking one takes seconds."""
    python = str(bin_folder / "python")
    return (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_the_wheel_holds_the_four_packages_and_nothing_generic(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == PACKAGES
    assert all(f"{package}/py.typed" in names for package in PACKAGES)
    assert "tickerplant/default_config.toml" in names


def test_a_base_install_brings_only_what_a_strategy_host_needs(base_install: Path) -> None:
    listed = run(*pip_of(base_install), "list", "--format", "freeze").stdout
    installed = {line.split("==")[0].lower() for line in listed.splitlines()}
    assert installed == {
        "kalshi-tickerplant",
        "msgspec",
        "sortedcontainers",
        "uvloop",
    }


def test_a_strategy_imports_on_a_base_install(base_install: Path) -> None:
    code = "from tickerplant_subscriber import Strategy, Subscriber, run; print(Strategy.__name__)"
    result = run(base_install / "python", "-c", code)
    assert (result.returncode, result.stdout) == (0, "Strategy\n")


def test_help_and_tail_work_on_a_base_install(base_install: Path) -> None:
    helped = run(base_install / "tickerplant", "--help")
    assert helped.returncode == 0
    assert "tail" in helped.stdout
    tailed = run(base_install / "tickerplant", "tail", "--group-a", "239.192.99.1", "--for", "1s")
    assert (tailed.returncode, tailed.stderr) == (0, "")


@pytest.mark.parametrize(
    "command", [("run",), ("sim",), ("demo",), ("doctor",), ("bench",), ("top",)]
)
def test_a_daemon_command_says_in_one_line_what_to_install(
    base_install: Path, command: tuple[str, ...]
) -> None:
    result = run(base_install / "tickerplant", *command)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'kalshi-tickerplant[daemon]'" in result.stderr
