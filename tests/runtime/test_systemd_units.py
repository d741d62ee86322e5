"""The units in deploy/systemd: their command exists, and their exit codes are those of the command."""

import re
import shlex
from pathlib import Path

import pytest

from tickerplant.cli import build_parser

UNITS = Path(__file__).resolve().parent.parent.parent / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))


def values(unit: Path, key: str) -> list[str]:
    """Of each line `key=value`."""
    return re.findall(rf"^{key}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_a_service_starts_a_command_that_there_is(service: Path) -> None:
    [command] = values(service, "ExecStart")
    program, *arguments = shlex.split(command)
    assert program == "/opt/tickerplant/bin/tickerplant"
    build_parser().parse_args(arguments)


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_what_is_not_possible_now_is_tried_again_and_a_mistake_is_not(service: Path) -> None:
    assert values(service, "Restart") == ["on-failure"]
    assert values(service, "RestartPreventExitStatus") == ["1 2"]


def test_each_timer_has_its_service_and_makes_up_for_a_day() -> None:
    timers = sorted(UNITS.glob("*.timer"))
    assert [timer.stem for timer in timers] == ["tickerplant-archive"]
    for timer in timers:
        assert timer.with_suffix(".service") in SERVICES
        assert values(timer, "Persistent") == ["true"]
        assert values(timer, "OnCalendar") == ["*-*-* 00:15:00 UTC"]
