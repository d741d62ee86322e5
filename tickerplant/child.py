"""Entry of processes that others start: a `tickerplant` command that ends when the process that started it does.

python -m tickerplant.child PARENT_PID COMMAND [OPTION ...]
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from tickerplant.cli import main
from tickerplant.errors import EXIT_FAILURE

PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> bool:
    """Ask the kernel for SIGTERM when the parent ends; False if it has ended already. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return os.getppid() == parent_pid


def run_child(arguments: Sequence[str]) -> int:
    """Run the command named in `arguments`, as the command line would, and return its exit code."""
    parent_pid, *command = arguments
    if not end_with_parent(int(parent_pid)):
        return EXIT_FAILURE
    return main(command)


if __name__ == "__main__":
    sys.exit(run_child(sys.argv[1:]))
