"""What a subscriber logs by itself: faults at most once a second for each kind, with the count held back."""

import logging

import pytest

from tickerplant.limits import FAULT_LOG_INTERVAL_NS
from tickerplant_subscriber.event_log import EventLog
from tickerplant_subscriber.events import (
    Event,
    Gap,
    Live,
    SessionChanged,
    StreamDead,
)


def test_faults_are_logged_once_a_second_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    now_ns = [0]
    log = EventLog(lambda: now_ns[0])
    with caplog.at_level(logging.DEBUG, "tickerplant_subscriber"):
        for seq in range(1, 6):
            log.take(Gap(1, 9, seq, seq, 3))
        log.take(Gap(2, 9, 1, 1, 3))
        now_ns[0] = FAULT_LOG_INTERVAL_NS
        log.take(Gap(1, 9, 9, 10, 3))
    assert [record.message for record in caplog.records] == [
        "gap: 1 messages lost on trade, cause network",
        "gap: 1 messages lost on bbo, cause network",
        "gap: 2 messages lost on trade, cause network (and 4 more like it before)",
    ]


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (StreamDead(1, 9), logging.WARNING),
        (SessionChanged(9, 0), logging.INFO),
        (Live("T", 2), None),
    ],
)
def test_each_kind_has_its_level(
    event: Event, level: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "tickerplant_subscriber"):
        EventLog(lambda: 0).take(event)
    assert [record.levelno for record in caplog.records] == ([level] if level else [])
