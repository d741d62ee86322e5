"""Faults of disk, permission and people: the tick log goes off, says why, and resumes with another session."""

import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from tick_log import (
    LARGE,
    QUICK,
    SECOND_NS,
    SESSION,
    Sender,
    begun,
    eventually,
    newest,
    options_of,
    read_folder,
    run_python,
)

from tickerplant.core.logformat import (
    SegmentName,
)
from tickerplant.errors import TickLogError
from tickerplant.runtime.logfolder import (
    LOCK_FILE,
    Owner,
    read_owner,
    take_lock,
)
from tickerplant.runtime.logreader import read_header
from tickerplant.runtime.logupkeep import LogUpkeep
from tickerplant.runtime.ticklog import open_ticklog


def goes_off(ticklog, sender: Sender, code: str) -> None:
    """Appends until the log is off for that reason; nothing raises, and it stays off."""
    eventually(lambda: not ticklog.append([sender.data()]), f"going off with {code}")
    for _ in range(3):
        assert not ticklog.append([sender.data()])
    status = ticklog.status()
    assert (status.is_on, status.code) == (False, code)
    assert "\n" not in status.reason
    assert ticklog.failures == {code: 1}
    assert ticklog.unlogged_datagrams == 4
    assert ticklog.oldest_seqs == (0,) * 5


def resumes(ticklog, sender: Sender) -> Sender:
    """Another session is logged as soon as that is possible."""
    eventually(lambda: ticklog.status().may_resume, "the way to resume")
    following = Sender(sender.session + SECOND_NS)
    assert ticklog.begin_session(
        following.session, following.session, previous=(sender.session, sender.next_seqs)
    )
    assert ticklog.append([following.data()])
    assert ticklog.status().code == ""
    return following


def test_a_segment_deleted_underneath_ends_the_log_until_another_session(tmp_path):
    sender = Sender()
    with begun(tmp_path, options=LARGE) as ticklog:
        assert ticklog.append([sender.data()])
        newest(tmp_path).unlink()
        goes_off(ticklog, sender, "deleted")
        assert read_owner(tmp_path) == Owner(os.getpid(), SESSION, "off")
        following = resumes(ticklog, sender)
    header = read_header(tmp_path, SegmentName(following.session, 1))
    assert (header.previous_session, header.previous_seqs) == (SESSION, sender.next_seqs)
    assert not header.is_previous_complete


def test_a_segment_replaced_or_cut_short_underneath_ends_the_log(tmp_path):
    for name, spoil, code in (
        ("replaced", lambda path: path.rename(path.with_suffix(".away")), "deleted"),
        ("cut", lambda path: os.truncate(path, 300), "truncated"),
    ):
        sender = Sender()
        with begun(tmp_path / name, options=LARGE) as ticklog:
            assert ticklog.append([sender.data() for _ in range(20)])
            spoil(newest(tmp_path / name))
            goes_off(ticklog, sender, code)


def test_a_deleted_folder_is_made_and_locked_again(tmp_path):
    folder = tmp_path / "log"
    sender = Sender()
    with begun(folder, options=LARGE) as ticklog:
        assert ticklog.append([sender.data()])
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        goes_off(ticklog, sender, "deleted")
        resumes(ticklog, sender)
        with pytest.raises(TickLogError, match="another plant"):
            open_ticklog(folder)
    assert len(read_folder(folder)[0]) == 1


def test_a_deleted_lock_ends_the_log_for_another_plant_could_take_the_folder(tmp_path):
    sender = Sender()
    with begun(tmp_path, options=LARGE) as ticklog:
        assert ticklog.append([sender.data()])
        eventually(lambda: ticklog.counters()["syncs"], "upkeep's first look at the segment")
        (tmp_path / LOCK_FILE).unlink()
        with begun(tmp_path, SESSION + 1):
            goes_off(ticklog, sender, "lock_lost")
            eventually(
                lambda: any("another plant" in text for text in ticklog.status().warnings),
                "the warning",
            )
            assert not ticklog.status().may_resume


def test_a_file_size_limit_gives_a_short_write_and_whole_records_only(tmp_path):
    run_python(
        """
        import resource
        from pathlib import Path
        from tick_log import Sender, begun, eventually, read_folder
        from tickerplant.core.logformat import SegmentName
        from tickerplant.runtime.logreader import read_header
        folder = Path(sys.argv[1])
        sender = Sender()
        ticklog = begun(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
        logged = 0
        flush = [sender.data() for _ in range(7)]
        while ticklog.append(flush):
            logged += 7
            flush = [sender.data() for _ in range(7)]
        assert ticklog.status().code == "file_too_large", ticklog.status()
        assert "ulimit" in ticklog.status().reason
        datagrams, faults = read_folder(folder)
        assert logged <= len(datagrams) < logged + 7
        size = next(folder.glob("*.ktl")).stat().st_size
        assert 2_800 < size < 3_000, size
        eventually(lambda: ticklog.status().warnings, "the warning")
        assert not ticklog.status().may_resume, "the disk does not take a whole page"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        eventually(lambda: ticklog.status().may_resume, "the way to resume")
        following = sender.session + 1
        assert ticklog.begin_session(following, 0, previous=(sender.session, sender.next_seqs))
        header = read_header(folder, SegmentName(following, 1))
        assert (header.previous_bytes, header.is_previous_complete) == (size, False)
        assert read_folder(folder) == (datagrams, faults) == (datagrams, [])
        ticklog.close()
        """,
        tmp_path,
    )


FULL_DISK = """
    import os, subprocess, time
    from pathlib import Path
    from tick_log import QUICK, Sender, begun, eventually, read_folder
    from tickerplant.runtime.ticklog import open_ticklog
    mount = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], check=True)
    folder = mount / "log"
    sender, sent = Sender(), []
    ticklog = begun(folder)
    def append():
        time.sleep(0.002)  # so that upkeep keeps pace with segments that are so small
        flush = [sender.data(count=20) for _ in range(3)]
        sent.extend(flush)
        return ticklog.append(flush)
    while append():
        pass
    status = ticklog.status()
    assert status.code == "disk_full", status
    assert "free some space" in status.reason
    assert not append()
    datagrams, faults = read_folder(folder)
    assert datagrams == [one for _stream, one in sent[:len(datagrams)]] and not faults
    assert not ticklog.status().may_resume
    assert b'"off"' in (folder / "ticklog.lock").read_bytes(), "the lock file has no room"
    # A plant that starts on the full disk runs unlogged.
    ticklog.close()
    filler = mount / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1)):
                pass
        except OSError:
            pass
    ticklog = open_ticklog(folder, QUICK)
    assert not ticklog.previous.is_complete
    second = sender.session + 1
    assert not ticklog.begin_session(second, second)
    assert ticklog.status().code == "disk_full", ticklog.status()
    assert not ticklog.append([Sender(second).data()])
    oldest = min(folder.glob("*.ktl"))
    os.truncate(oldest, oldest.stat().st_size - 8_192)
    eventually(lambda: not ticklog.status().warnings, "room for a page")
    assert not ticklog.status().may_resume, "there is no room for a segment"
    for path in folder.glob("*.ktl"):
        path.unlink()
    filler.unlink()
    eventually(lambda: ticklog.status().may_resume, "the way to resume")
    third = Sender(second + 1)
    assert ticklog.begin_session(third.session, 0, previous=(second, (1, 1, 1, 2, 1)))
    assert ticklog.append([third.data()])
    ticklog.close()
    assert len(read_folder(folder)[0]) == 1
"""


def test_a_full_disk_ends_the_log_and_freed_space_lets_it_resume(tmp_path):
    """A real file system of 64 KiB, in a mount namespace of its own."""
    may = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if may.returncode:
        pytest.skip("this user may not make a mount namespace")
    run_python(FULL_DISK, tmp_path, prefix=("unshare", "--mount"))


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become the user who lacks the permission"
)
def test_a_folder_whose_permission_is_lost_warns_and_ends_the_log_when_the_segment_is_too_long():
    """Also without permission the open segment can be written; it cannot be followed by another."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        run_python(
            """
            import os
            from pathlib import Path
            from tick_log import Sender, begun, eventually, options_of
            begun(Path(sys.argv[1]) / "other").close()  # all that is imported late
            os.setuid(65534)
            folder = Path(sys.argv[1]) / "log"
            sender = Sender()
            ticklog = begun(folder, options=options_of(overrun_bytes=50_000))
            folder.chmod(0o500)
            def warned():
                assert ticklog.append([sender.data()])
                return any("Permission denied" in text for text in ticklog.status().warnings)
            eventually(warned, "a warning")
            while ticklog.append([sender.data(count=20)]):
                pass
            status = ticklog.status()
            assert status.code == "no_rotation" and "writable" in status.reason, status
            size = next(folder.glob("*.ktl")).stat().st_size
            assert 66_384 <= size < 80_000, size
            assert not ticklog.status().may_resume
            folder.chmod(0o700)
            eventually(lambda: ticklog.status().may_resume, "the way to resume")
            ticklog.close()
            """,
            folder,
        )


def test_a_failed_sync_ends_the_log(tmp_path):
    """A pipe cannot be synced: the same error of the same call as from a broken disk."""
    asked = threading.Event()
    lock, _owner = take_lock(tmp_path)
    upkeep = LogUpkeep(tmp_path, QUICK, lock, ask=asked.set, written_bytes=lambda: 0)
    upkeep.start()
    read_end, write_end = os.pipe()
    upkeep.retired.append(write_end)
    upkeep.wake()
    assert asked.wait(10)
    assert upkeep.trouble.code == "io_error"
    assert "cannot sync" in upkeep.trouble.text
    assert upkeep.counts["sync_failures"] == 1
    os.close(read_end)
    assert upkeep.close(5)


def test_the_log_resumes_the_later_the_more_often_it_goes_off(tmp_path):
    sender = Sender()
    with begun(
        tmp_path, options=options_of(resume_wait_s=0.3, segment_max_bytes=1 << 20)
    ) as ticklog:
        waits = []
        for _ in range(2):
            newest(tmp_path).unlink()
            eventually(lambda: not ticklog.append([sender.data()]), "going off")  # noqa: B023  # used at once
            off_since = time.monotonic()
            sender = resumes(ticklog, sender)
            waits.append(time.monotonic() - off_since)
    assert waits[0] >= 0.6
    assert waits[1] >= 1.2
