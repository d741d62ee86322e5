"""`tickerplant` as a JSON object wants it, before anything else is imported; the plant itself is the real one.

    python plant_variant.py '{"limits": {"SESSION_LISTEN_NS": 50000000}}' run --config FILE

limits                  constants of `tickerplant.limits`, mostly shorter times
kill_between            kill the process in place of the n-th send of data, its datagrams being in the log
"""

import os
import signal
import sys

import msgspec

from tickerplant import limits

KIND_OFFSET = 3


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be different."""

    limits: dict[str, int | float] = {}
    kill_between: int = 0


def main() -> int:
    """Make the changes, then run the command line."""
    variant = msgspec.json.decode(sys.argv.pop(1), type=Variant)
    for name, value in variant.limits.items():
        assert hasattr(limits, name), name
        setattr(limits, name, value)
    from tickerplant.cli import main as run_command

    if variant.kill_between:
        die_between(variant.kill_between)
    return run_command()


def die_between(sends: int) -> None:
    """The publisher's `sends`-th send of data is the end of the process."""
    from tickerplant.core.packets import Datagram
    from tickerplant.core.wire import Kind
    from tickerplant.runtime.publisher import Publisher

    send = Publisher.send
    left = sends

    def send_or_die(publisher: Publisher, datagrams: list[Datagram]) -> None:
        nonlocal left
        left -= any(datagram[KIND_OFFSET] == Kind.DATA for _, datagram in datagrams)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        send(publisher, datagrams)

    Publisher.send = send_or_die  # type: ignore[method-assign,assignment]  # the hook of this test


if __name__ == "__main__":
    sys.exit(main())
