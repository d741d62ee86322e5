"""Key files: made, changed, read, and refused with one line that names file and remedy and shows no key."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tickerplant import cli
from tickerplant.core.keyring import format_key
from tickerplant.errors import CredentialsError
from tickerplant.key_file import KeyFile, add_key, is_readable_by_all, make_key_file, read_keys
from tickerplant.limits import DATAGRAM_KEY_FILE_MAX_BYTES, DATAGRAM_KEYS_MAX


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of a test is."""
    return tmp_path / "datagram.keys"


def key(path: Path, *words: str) -> int:
    """`tickerplant key ACTION FILE ...`."""
    action, *options = words
    return cli.main(["key", action, str(path), *options])


def test_a_made_file_is_its_owners_alone(path: Path) -> None:
    key_id = make_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not is_readable_by_all(path)
    ring = read_keys(path)
    assert list(ring.keys) == [key_id]
    assert len(ring.keys[key_id]) == 32
    path.chmod(0o644)
    assert is_readable_by_all(path)


def test_two_made_files_differ(tmp_path: Path) -> None:
    made = [read_keys(tmp_path / name) for name in "ab" if make_key_file(tmp_path / name)]
    assert made[0].signing_key[0] != made[1].signing_key[0]
    assert made[0].signing_key[1] != made[1].signing_key[1]


def test_a_new_key_is_rolled_out_step_by_step(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the runbook says: make, add, use, remove; the file keeps its mode, and no key is ever printed."""
    assert key(path, "make", "--id", "11") == 0
    path.chmod(0o640)
    assert key(path, "add", "--id", "22") == 0
    assert read_keys(path).signing_key_id == 11
    assert key(path, "use", "--id", "22") == 0
    assert read_keys(path).signing_key_id == 22
    assert key(path, "list") == 0
    assert key(path, "remove", "--id", "11") == 0
    ring = read_keys(path)
    assert list(ring.keys) == [22]
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]
    output = capsys.readouterr().out
    assert "22 signs\n11 verifies\n" in output
    assert not any(value.hex() in output for value in ring.keys.values())


@pytest.mark.parametrize(
    "words",
    [("make",), ("use", "--id", "9"), ("remove", "--id", "9"), ("remove", "--id", "11")],
    ids=" ".join,
)
def test_what_cannot_be_done_leaves_the_file_as_it_is(
    path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    make_key_file(path, 11)
    before = path.read_bytes()
    assert key(path, *words) == 2
    assert path.read_bytes() == before
    line = capsys.readouterr().err
    assert line.startswith("tickerplant: error: ")
    assert str(path) in line


def test_a_key_id_that_is_there_is_not_added_again(path: Path) -> None:
    make_key_file(path, 11)
    with pytest.raises(CredentialsError, match="stands twice"):
        add_key(path, 11)
    for _ in range(DATAGRAM_KEYS_MAX - 1):
        add_key(path)
    with pytest.raises(CredentialsError, match="remove the old ones"):
        add_key(path)
    assert len(read_keys(path).keys) == DATAGRAM_KEYS_MAX


@pytest.mark.parametrize("text", ["0", "x", "4294967296", "-1", "9" * 500])
def test_a_key_id_is_a_number(path: Path, text: str) -> None:
    assert key(path, "make", f"--id={text}") == 2
    assert not path.exists()


def _too_large(path: Path) -> None:
    path.write_bytes(b"#" * (DATAGRAM_KEY_FILE_MAX_BYTES + 1))


def _pem(path: Path) -> None:
    path.write_text(
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----\n"
    )


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "is not there: make it with `tickerplant key make"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (_too_large, "is larger than"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (_pem, "line 1 is not a key id"),
        (lambda path: path.write_text(""), "holds no key"),
    ],
)
def test_a_file_of_no_use_is_refused_in_one_line(
    path: Path, make: Callable[[Path], object], problem: str
) -> None:
    make(path)
    with pytest.raises(CredentialsError, match=problem) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.fixture
def as_ordinary_user() -> Iterator[None]:
    """Permissions do not bind root, so act as nobody where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(user)


def test_a_file_without_permission_is_refused(path: Path, request: pytest.FixtureRequest) -> None:
    make_key_file(path)
    path.chmod(0)
    request.getfixturevalue("as_ordinary_user")
    with pytest.raises(CredentialsError, match="give this user access"):
        read_keys(path)


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="cannot be written"):
        make_key_file(tmp_path / "none" / "datagram.keys")


# --- a file that changes while it is in use ---------------------------------------------------------


def test_a_changed_file_is_taken_over(path: Path) -> None:
    make_key_file(path, 11)
    file = KeyFile(path)
    assert not file.reread()
    add_key(path, 22)
    assert file.reread()
    assert list(file.ring.keys) == [11, 22]
    assert not file.reread()


def test_a_changed_file_of_no_use_is_told_once_and_the_keys_stay(path: Path) -> None:
    make_key_file(path, 11)
    file = KeyFile(path)
    path.write_text("garbage")
    with pytest.raises(CredentialsError, match="line 1"):
        file.reread()
    assert not file.reread()
    path.unlink()
    with pytest.raises(CredentialsError, match="is not there"):
        file.reread()
    assert not file.reread()
    assert list(file.ring.keys) == [11]
    path.write_text(format_key(33, b"k" * 32))
    assert file.reread()
    assert list(file.ring.keys) == [33]


def test_a_touched_file_is_no_change(path: Path) -> None:
    make_key_file(path)
    file = KeyFile(path)
    path.touch()
    os.utime(path, ns=(1, 1))
    assert not file.reread()
