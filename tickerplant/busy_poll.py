"""An event loop that never sleeps, for a process with a core of its own: nothing that arrives waits for it to wake up.

Of the plant and of a subscriber alike.
"""

import asyncio


class BusyPoll:
    """Between `start` and `stop` the loop looks for input over and over and takes the whole of its core."""

    def __init__(self) -> None:
        """Off."""
        self._loop: asyncio.AbstractEventLoop
        self._turn: asyncio.Handle | None = None

    def start(self) -> None:
        """From now on, on the running loop; again is the same."""
        if self._turn is None:
            self._loop = asyncio.get_running_loop()
            self._go_round()

    def stop(self) -> None:
        """Sleep again where nothing is to be done."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _go_round(self) -> None:
        # A callback that is due makes the loop ask for input without waiting for it.
        self._turn = self._loop.call_soon(self._go_round)
