"""An event loop that does not sleep, and one that sleeps again."""

import asyncio
import time

from plant_in_process import Place, daemon_of, exchange, running, settled, until

from tickerplant.busy_poll import BusyPoll
from tickerplant.config import ProcessorConfig

_SECONDS = 0.1


async def processor_share() -> float:
    """Of the processor time that passes while nothing comes in, the part that this process takes."""
    began_s, began_processor_s = time.monotonic(), time.thread_time()
    await asyncio.sleep(_SECONDS)
    return (time.thread_time() - began_processor_s) / (time.monotonic() - began_s)


async def test_between_start_and_stop_the_loop_does_not_sleep() -> None:
    busy_poll = BusyPoll()
    before = await processor_share()
    busy_poll.start()
    busy_poll.start()
    busy = await processor_share()
    busy_poll.stop()
    after = await processor_share()
    assert busy > 5 * before
    assert busy > 5 * after


async def test_a_plant_that_does_not_sleep_gets_the_books_right_and_ends(place: Place) -> None:
    async with exchange(place, rate=500) as server:
        daemon = daemon_of(server, place, processor=ProcessorConfig(busy_poll=True))
        async with running(daemon) as task:
            await until(lambda: daemon.plant.trades > 5)
            await settled(daemon, server)
            assert daemon.publisher.lost_datagrams == 0
        assert task.done()
    assert await processor_share() < 0.5
