"""Checks of the host."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tickerplant.errors import CredentialsError, NetworkSetupError
from tickerplant.runtime.checks import (
    Status,
    check_open_files,
    check_state_directory,
    from_error,
    warn,
)


@pytest.fixture
def few_files() -> Iterator[int]:
    """A low soft limit of open files for this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    yield 200
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_open_files(few_files: int) -> None:
    assert check_open_files(few_files).status is Status.OK
    result = check_open_files(few_files + 1)
    assert result.status is Status.WARN
    assert "limit 200, 201 wanted" in result.detail
    assert "ulimit -n 201" in result.remedy
    assert "LimitNOFILE=201" in result.remedy


def test_state_directory_that_is_there_or_can_be_made(tmp_path: Path) -> None:
    result = check_state_directory(tmp_path)
    assert result.status in {Status.OK, Status.WARN}
    assert list(tmp_path.iterdir()) == []
    later = check_state_directory(tmp_path / "a" / "b")
    assert "(will be created)" in later.detail
    assert not (tmp_path / "a").exists()


def test_state_directory_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        result = check_state_directory(path)
        assert result.status is Status.FAIL
        assert f"{tmp_path / 'file'} is not a folder" in result.detail
        assert "state.directory" in result.remedy


def test_state_directory_that_cannot_be_written() -> None:
    """/proc is a folder in which nobody, root included, can make a file."""
    result = check_state_directory(Path("/proc"))
    assert result.status is Status.FAIL
    assert "/proc cannot be written" in result.detail


def test_remedy_of_an_error_is_what_follows_its_last_colon() -> None:
    result = from_error(
        "key", CredentialsError("key file a: b does not exist: set exchange.key_path")
    )
    assert result.detail == "key file a: b does not exist"
    assert result.remedy == "set exchange.key_path"
    assert from_error("key", CredentialsError("odd")).detail == "odd"


def test_only_a_failure_is_raised() -> None:
    warn("a", "b", "c").require()
    with pytest.raises(NetworkSetupError, match="key: odd"):
        from_error("key", CredentialsError("odd")).require()
