"""Half a minute of the soak, with the waits of the plant shortened: every fault at least once."""

import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).with_name("soak.py")
KINDS = 31
"""Of faults, by kind, channel and variant."""
TIMEOUT_S = 110


def test_half_a_minute_of_every_fault_ends_with_all_books_equal() -> None:
    """The script itself judges; here its verdict and that nothing was left out."""
    command = [sys.executable, str(SOAK), "--for", "30s", "--seed", "20260312"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"faults made and seen, {KINDS} kinds" in result.stdout
    assert "soak passed: all books equal" in result.stdout
