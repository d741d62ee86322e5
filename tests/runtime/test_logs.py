"""Log lines: form, limits, and no secret in any of them. Each in a process of its own: logging is global."""

import io
import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from tickerplant.limits import LOG_EVENT_NAMES_MAX
from tickerplant.runtime.logs import LineWriter, WarningLimit, hide_secrets

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEsecretsecret+/=\nsecret\n-----END RSA PRIVATE KEY-----\n"
)


def log_lines(code: str, *, level: str = "info", line_format: str = "json") -> list[str]:
    """What `code` writes to standard error through a configured `log`."""
    setup = (
        "import logging, structlog\n"
        "from tickerplant.runtime.logs import configure_logging\n"
        f"output = configure_logging({level!r}, {line_format!r})\n"
        "log = structlog.get_logger()\n"
        f"PEM = {PEM!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", setup + code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stderr.splitlines()


def json_lines(code: str, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_lines(code, **options)]


def test_json_line_has_time_level_event_and_fields() -> None:
    (line,) = json_lines(
        "log.info('started', markets=3, name='KX\\n\\x1b[31m', price=float('nan'))"
    )
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "started",
        "level": "info",
        "markets": 3,
        "name": "KX\\n\\x1b[31m",
        "price": "nan",
    }


def test_time_is_utc_in_iso_form() -> None:
    (line,) = json_lines("log.info('x')")
    written = datetime.fromisoformat(line["timestamp"])
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)


def test_console_line_is_one_line_without_control_characters() -> None:
    (line,) = log_lines("log.info('a\\nb', text='c\\x1b[2Jd')", line_format="console")
    assert "a\\nb" in line
    assert "c\\x1b[2Jd" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("line_format", ["json", "console"])
def test_level_is_respected(line_format: str) -> None:
    code = "log.debug('d'); log.info('i'); log.warning('w'); log.error('e')\n"
    code += f"configure_logging('info', {line_format!r}); log = structlog.get_logger()\n"
    code += "log.debug('d2'); log.info('i2')\n"
    code += f"configure_logging('error', {line_format!r}); log = structlog.get_logger()\n"
    code += "log.warning('w3'); log.error('e3')\n"
    lines = log_lines(code, level="debug", line_format=line_format)
    assert len(lines) == 6
    assert [word in line for word, line in zip(("i2", "e3"), lines[4:], strict=True)] == [True] * 2


def test_standard_library_logging_is_routed_through_and_limited() -> None:
    code = (
        "other = logging.getLogger('aiohttp.client')\n"
        "other.info('quiet')\n"
        "for n in range(5): other.warning('retry %d of %s', n, 'x')\n"
        "other.error('bad %d', 'not a number')\n"
        "output.tell_suppressed()\n"
    )
    lines = json_lines(code)
    assert [(line["event"], line.get("logger")) for line in lines] == [
        ("retry 0 of x", "aiohttp.client"),
        ("bad %d", "aiohttp.client"),
        ("warnings_suppressed", None),
    ]
    assert lines[-1]["suppressed"] == 4
    quiet = json_lines("logging.getLogger('aiohttp').info('seen')", level="debug")
    assert [line["event"] for line in quiet] == ["seen"]


def test_exception_is_plain_and_shows_no_local_variable() -> None:
    code = (
        "def sign():\n"
        "    hidden_key = PEM\n"
        "    raise ValueError('cannot use ' + repr(PEM))\n"
        "try: sign()\n"
        "except ValueError: log.exception('failed')\n"
    )
    for line_format in ("json", "console"):
        text = "\n".join(log_lines(code, line_format=line_format))
        assert "ValueError: cannot use" in text
        assert "secret" not in text
        assert "[hidden]" in text


SECRETS = (
    "log.info('x', key_pem='secret')",
    "log.info('x', data=PEM)",
    "log.info('x', data=PEM.encode())",
    "log.info('x', data=repr(PEM))",
    "log.info('x', data=PEM[:50])",
    "log.info('x', data={'deep': [{'pem': 'secret'}]})",
    "log.info('x', headers={'KALSHI-ACCESS-SIGNATURE': 'secret'})",
    "log.info('x', headers=str({'KALSHI-ACCESS-SIGNATURE': 'secret'}))",
    "log.info('sent KALSHI-ACCESS-SIGNATURE: secret')",
    "log.info(PEM)",
    "logging.getLogger('a').warning('key %s', PEM)",
    "log.info('x', error=ValueError(PEM))",
    "log.info('x', deep=[[[[[[[[[PEM]]]]]]]]])",
)
"""Each logs one line."""


@pytest.fixture(scope="module", params=["json", "console"])
def lines_with_secrets(request: pytest.FixtureRequest) -> dict[str, str]:
    """What became of them, by the code that logs."""
    lines = log_lines("\n".join(SECRETS), line_format=request.param)
    return dict(zip(SECRETS, lines, strict=True))


@pytest.mark.parametrize("code", SECRETS)
def test_no_secret_is_logged(lines_with_secrets: dict[str, str], code: str) -> None:
    assert lines_with_secrets[code]
    assert "secret" not in lines_with_secrets[code]


def test_ordinary_words_are_not_taken_for_secrets() -> None:
    event = {"event": "private key is missing", "taker_side": "yes", "key_path": "/etc/k.pem"}
    assert hide_secrets(None, "info", dict(event)) == event


def test_long_texts_are_cut_and_odd_values_survive() -> None:
    event = {"event": "x", "text": "a" * 100_000, "big": 10**40, "odd": "\ud800", "set": {1}}
    cleaned = dict(hide_secrets(None, "info", event))
    assert len(str(cleaned["text"])) < 20_000
    assert str(cleaned["text"]).endswith("(100000 characters)")
    assert json.loads(json.dumps(cleaned))["big"] == 10**40


def limited(
    limit: WarningLimit, name: str, method: str = "warning", **fields: Any
) -> dict[str, Any] | None:
    try:
        return dict(limit(None, method, {"event": name, **fields}))
    except structlog.DropEvent:
        return None


def test_one_warning_a_second_per_name_and_the_next_tells_the_number() -> None:
    now_ns = 0
    limit = WarningLimit(clock_ns=lambda: now_ns)
    assert limited(limit, "gap") == {"event": "gap"}
    assert [limited(limit, "gap") for _ in range(7)] == [None] * 7
    assert limited(limit, "other") == {"event": "other"}
    assert limited(limit, "gap", method="error") == {"event": "gap"}
    assert limited(limit, "gap", method="info") == {"event": "gap"}
    now_ns = 999_999_999
    assert limited(limit, "gap") is None
    now_ns = 1_000_000_000
    assert limited(limit, "gap") == {"event": "gap", "suppressed": 8}
    now_ns = 2_000_000_000
    assert limited(limit, "gap") == {"event": "gap"}
    assert limit.suppressed_total == 8


def test_rate_key_replaces_the_name_and_is_not_written() -> None:
    limit = WarningLimit(clock_ns=lambda: 0)
    assert limited(limit, "a", rate_key="k") == {"event": "a"}
    assert limited(limit, "b", rate_key="k") is None
    assert limit.take_suppressed() == {"k": 1}
    assert limit.take_suppressed() == {}


def test_names_are_bounded() -> None:
    limit = WarningLimit(clock_ns=lambda: 0)
    written = [limited(limit, f"name {number}") for number in range(LOG_EVENT_NAMES_MAX + 100)]
    assert sum(event is not None for event in written) == LOG_EVENT_NAMES_MAX + 1
    assert limit.take_suppressed() == {"(other)": 99}


def test_a_stream_that_fails_loses_lines_and_nothing_else() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)
    writer.info("one")
    assert stream.getvalue() == "one\n"
    stream.close()
    writer.info("two")
    writer.error("three")
    assert writer.lost_lines == 2


def test_log_to_a_pipe_without_reader_does_not_stop_the_process() -> None:
    code = (
        "import os\n"
        "reading, writing = os.pipe()\n"
        "os.close(reading)\n"
        "os.dup2(writing, 2)\n"
        "log.error('nobody hears this')\n"
        "print(output.counters()['lines_lost'])\n"
        "os.dup2(1, 2)\n"
        "log.error('this is heard')\n"
    )
    setup = (
        "import structlog\nfrom tickerplant.runtime.logs import configure_logging\n"
        "output = configure_logging('info', 'json')\nlog = structlog.get_logger()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", setup + code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    first, *rest = done.stdout.splitlines()
    # The failed line stays in the stream's buffer, so it may follow once the stream works again.
    assert "this is heard" in "".join([first, *rest])
    assert "1" in {first, *rest}


def test_logging_module_is_left_alone_until_configured() -> None:
    assert not any(
        type(item).__name__ == "StandardLibraryHandler" for item in logging.getLogger().handlers
    )
