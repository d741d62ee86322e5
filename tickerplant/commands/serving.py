"""How the commands of the processes beside the plant run: logging, signals, event loop."""

from typing import TYPE_CHECKING, Any

from tickerplant.errors import EXIT_OK

if TYPE_CHECKING:
    from tickerplant.config_sources import LoadedConfig
    from tickerplant.runtime.companion_process import CompanionProcess


def serve_until_told(kind: "type[CompanionProcess[Any]]", loaded: "LoadedConfig") -> int:
    """Run a process of this kind until SIGTERM or SIGINT; the exit code. Raises the `TickerplantError` that ends it."""
    import asyncio
    import os
    import signal

    import uvloop

    from tickerplant.runtime.health import SystemdNotifier
    from tickerplant.runtime.logs import configure_logging

    output = configure_logging(loaded.config.log.level, loaded.config.log.format)

    async def serve() -> None:
        process = kind(
            loaded.config,
            state_directory=loaded.state_directory,
            notifier=SystemdNotifier(os.environ),
            warning_tail=output,
            tune_process=True,
        )
        process.metrics.add("log", output)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await process.run(stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    return EXIT_OK
