"""A short run of `make fuzz`, and that a finding is reported."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER))

import fuzz  # noqa: E402 - found on the path set above
from mutations import flip_bits, insert, json_tokens, repeat_part, splice, truncate  # noqa: E402


@pytest.mark.timeout(110)
def test_a_short_run_finds_nothing():
    """Tens of thousands of frames, datagrams and requests, by the command that `make fuzz` runs."""
    command = [sys.executable, str(FOLDER / "fuzz.py"), "--seed", "1", "--seconds", "30"]
    finished = subprocess.run(
        [
            *command,
            "--frames",
            "50000",
            "--datagrams",
            "50000",
            "--requests",
            "30000",
            "--replies",
            "1500",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.splitlines()[0] == "seed 1"
    assert "all well" in finished.stdout


class Finding:
    """A fuzzer that behaves as the test wants."""

    def __init__(self, error=None, hoard=0):
        self.exceptions, self.outcomes = Counter(), Counter({"seen": 1})
        self.last_input = b"the input"
        self.error, self.hoard, self.kept, self.batches = error, hoard, [], 0

    def run_batch(self):
        """Ten inputs; from the third batch on it shows its fault."""
        self.batches += 1
        if self.batches > 2:
            if self.error is not None:
                raise self.error
            self.kept.append(b"x" * self.hoard)
        return 10


def test_an_exception_is_a_finding(capsys):
    """With the input that caused it."""
    assert not fuzz.run("frames", Finding(error=KeyError("x")), 100, 0, ())
    printed = capsys.readouterr().out
    assert "KeyError" in printed
    assert "the input" in printed


def test_growing_memory_is_a_finding(capsys, monkeypatch):
    """Beyond the bound, measured after the warm-up."""
    monkeypatch.setattr(fuzz, "GROWTH_MAX_MIB", 4)
    assert not fuzz.run("frames", Finding(hoard=8 * 1024 * 1024), 100, 0, ())
    assert "memory grew" in capsys.readouterr().out


def test_a_fuzzer_that_reaches_nothing_is_a_finding(capsys):
    """Else a broken fuzzer would look like a sound program."""
    assert not fuzz.run("frames", Finding(), 100, 0, ("seen", "deep"))
    assert "never reached: deep" in capsys.readouterr().out
    assert fuzz.run("frames", Finding(), 100, 0, ("seen",))


def test_a_run_is_bounded_in_time():
    """`--seconds` ends it."""
    endless = Finding()
    assert fuzz.run("frames", endless, 10**15, 0.05, ())
    assert endless.batches > 2


def test_the_same_seed_gives_the_same_inputs():
    """A finding can be had again."""
    from datagram_fuzz import DatagramFuzzer
    from frame_fuzz import FrameFuzzer
    from reply_fuzz import ReplyFuzzer
    from request_fuzz import RequestFuzzer

    for kind in (FrameFuzzer, DatagramFuzzer, RequestFuzzer, ReplyFuzzer):
        inputs = []
        for _ in range(2):
            fuzzer = kind(5)
            seen = []
            for _ in range(40):
                fuzzer.run_batch()
                seen.append(fuzzer.last_input)
            if isinstance(fuzzer, RequestFuzzer):
                fuzzer.close()
            inputs.append(seen)
        assert inputs[0] == inputs[1]
        assert len(set(inputs[0])) > 30


def test_damage_is_damage():
    """Each mutation usually changes its input, and never fails on short ones."""
    import random

    chance = random.Random(3)
    data = b'{"type":"x","sid":1,"msg":{"a":[true,-1.5,"b\\"c"]}}'
    for mutate in (flip_bits, truncate, insert, repeat_part):
        changed = sum(mutate(data, chance) != data for _ in range(100))
        assert changed > 80, mutate
        assert isinstance(mutate(b"", chance), bytes)
    assert splice(data, data, chance) != data
    assert [data[a:b] for a, b in json_tokens(data)][-3:] == [b"true", b"-1.5", b'"b\\"c"']
