"""What a check finds, and the checks of the host itself: open files, the state directory."""

import os
import resource
import tempfile
from enum import StrEnum
from pathlib import Path

import msgspec

from tickerplant.errors import NetworkSetupError, TickerplantError
from tickerplant.limits import STATE_FREE_MIN_BYTES, STATE_FREE_WANTED_BYTES


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One check: what was looked at, what was found, and, unless it is well, what to do about it."""

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def require(self) -> None:
        """Raise `NetworkSetupError` if the check failed."""
        if self.status is Status.FAIL:
            raise NetworkSetupError(f"{self.name}: {self.detail}; {self.remedy}")


def ok(name: str, detail: str) -> CheckResult:
    """All is well."""
    return CheckResult(name=name, status=Status.OK, detail=detail)


def warn(name: str, detail: str, remedy: str) -> CheckResult:
    """It works, but not as it should."""
    return CheckResult(name=name, status=Status.WARN, detail=detail, remedy=remedy)


def fail(name: str, detail: str, remedy: str) -> CheckResult:
    """It does not work."""
    return CheckResult(name=name, status=Status.FAIL, detail=detail, remedy=remedy)


def from_error(name: str, error: TickerplantError, status: Status = Status.FAIL) -> CheckResult:
    """The result for an error whose one line ends with the remedy, after a colon or semicolon."""
    text = " ".join(str(error).split())
    cut = max(text.rfind(": "), text.rfind("; "))
    detail, remedy = (text[:cut], text[cut + 2 :]) if cut > 0 else (text, "")
    return CheckResult(name=name, status=status, detail=detail, remedy=remedy)


def check_open_files(wanted: int) -> CheckResult:
    """The limit of open files against `wanted`."""
    name = "open files"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ok(name, f"limit {'none' if soft == resource.RLIM_INFINITY else soft}")
    remedy = f"`ulimit -n {wanted}`, or LimitNOFILE={wanted} in the systemd unit"
    if hard != resource.RLIM_INFINITY and hard < wanted:
        remedy += f" (as root: the hard limit is {hard})"
    return warn(name, f"limit {soft}, {wanted} wanted", remedy)


def check_state_directory(path: Path) -> CheckResult:
    """That `path` can be written and has room; it is not created here, for it must belong to the plant's user."""
    name = "state directory"
    remedy = "make it writable for this user, or set state.directory"
    ancestor = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not ancestor.is_dir():
        return fail(name, f"{ancestor} is not a folder", "set state.directory to a folder")
    try:
        if ancestor == path:
            with tempfile.TemporaryFile(dir=path) as probe:
                probe.write(bytes(4096))
                probe.flush()
                os.fsync(probe.fileno())
        elif not os.access(ancestor, os.W_OK | os.X_OK):
            return fail(name, f"{path} cannot be created in {ancestor}", remedy)
        space = os.statvfs(ancestor)
    except OSError as error:
        return fail(name, f"{path} cannot be written: {error.strerror}", remedy)
    free_bytes = space.f_bavail * space.f_frsize
    text = f"{path}{'' if ancestor == path else ' (will be created)'}, {free_bytes // 1024**2} MiB free"
    if free_bytes < STATE_FREE_MIN_BYTES:
        return fail(name, text, "free some space, or set state.directory")
    if free_bytes < STATE_FREE_WANTED_BYTES:
        return warn(name, text, "free some space, or set state.directory")
    return ok(name, text)
