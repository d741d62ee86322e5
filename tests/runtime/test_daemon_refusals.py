"""What keeps a plant from starting or ends it: one line each, with the exit code of its kind."""

import asyncio
import socket

import pytest
from plant_in_process import (
    LISTEN_NS,
    LOOPBACK,
    Place,
    Receiver,
    config_of,
    daemon_of,
    exchange,
    running,
    until,
)

from tickerplant.config import (
    Config,
    MarketsConfig,
    MetricsConfig,
    PublishConfig,
)
from tickerplant.core.messages import FeedPhase
from tickerplant.core.wire import Kind
from tickerplant.errors import (
    ClockSkewError,
    ConfigurationError,
    CredentialsError,
    GroupOccupiedError,
    NetworkSetupError,
    StateDirectoryError,
    TickerplantError,
)
from tickerplant.runtime.daemon import Daemon, channels_of
from tickerplant.runtime.startup import SESSION_FILE
from tickerplant_kalshi.auth import load_signer
from tickerplant_kalshi.rest import RestClient

# --- what keeps it from starting ------------------------------------------------------------------


async def refusal(daemon: Daemon) -> TickerplantError:
    """The error that ends a daemon, checked to be one line."""
    with pytest.raises(TickerplantError) as caught:
        await asyncio.wait_for(daemon.run(), 15)
    assert "\n" not in str(caught.value)
    return caught.value


async def test_a_foreign_protocol_on_a_group_is_named(place: Place) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        groups = PublishConfig(group_a=place.group, port=place.port).groups()

        async def chatter() -> None:
            while True:
                sender.sendto(
                    b"not ours, but long enough for a header of forty bytes",
                    (groups[3], place.port),
                )
                await asyncio.sleep(0.005)

        async with exchange(place) as server:
            task = asyncio.create_task(chatter())
            error = await refusal(daemon_of(server, place))
            task.cancel()
    assert isinstance(error, GroupOccupiedError)
    assert groups[3] in str(error)
    assert "publish.group_a" in str(error)
    assert not (place.folder / "state" / SESSION_FILE).exists()


async def test_another_plant_on_the_groups_keeps_the_second_from_starting(place: Place) -> None:
    async with exchange(place, rate=2_000) as server:
        first = daemon_of(server, place)
        async with running(first):
            second = daemon_of(server, place, state="other")
            second._session_listen_ns = 1_100_000_000
            error = await refusal(second)
            assert isinstance(error, GroupOccupiedError)
            assert f"session {first.plant.session}" in str(error)
            assert first.plant.phase is FeedPhase.READY


async def test_one_state_directory_serves_one_plant(place: Place) -> None:
    async with exchange(place) as server, running(daemon_of(server, place)):
        error = await refusal(daemon_of(server, place))
        assert isinstance(error, StateDirectoryError)
        assert error.exit_code == 1


async def test_a_plant_that_hears_a_newer_one_on_its_groups_ends_its_session(
    place: Place, receiver: Receiver
) -> None:
    async with exchange(place) as server:
        older = daemon_of(server, place)
        task = asyncio.create_task(older.run())
        await until(older.ready.is_set, task)
        # Without listening the newer one does not notice the older one, as if both had started together.
        newer = daemon_of(server, place, state="other")
        newer._session_listen_ns = 0
        async with running(newer):
            with pytest.raises(GroupOccupiedError, match=rf"session {newer.plant.session}\)"):
                await asyncio.wait_for(task, 10)
            assert newer.plant.phase is FeedPhase.READY
    assert len(receiver.of_kind(Kind.END_OF_SESSION, older.plant.session)) == 20


async def test_a_metrics_port_in_use_is_named(place: Place) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        async with exchange(place) as server:
            error = await refusal(daemon_of(server, place, metrics=MetricsConfig(port=port)))
    assert isinstance(error, NetworkSetupError)
    assert f":{port}" in str(error)
    assert "metrics.port" in str(error)


async def test_an_interface_that_does_not_exist_is_named(place: Place) -> None:
    async with exchange(place) as server:
        publish = PublishConfig(group_a=place.group, port=place.port, interface="192.0.2.77")
        error = await refusal(daemon_of(server, place, publish=publish))
    assert isinstance(error, NetworkSetupError)
    assert "192.0.2.77" in str(error)


async def test_clocks_that_differ_are_a_temporary_failure(place: Place) -> None:
    async with exchange(place, clock_offset_s=90) as server:
        error = await refusal(daemon_of(server, place))
    assert isinstance(error, ClockSkewError)
    assert error.exit_code == 75


async def test_a_clock_within_the_exchange_s_but_not_our_tolerance_is_refused_too(
    place: Place,
) -> None:
    async with exchange(place, clock_offset_s=9) as server:
        error = await refusal(daemon_of(server, place))
    assert isinstance(error, ClockSkewError)


async def test_an_unknown_key_is_a_credentials_error(place: Place) -> None:
    async with exchange(place) as server:
        daemon = Daemon(
            config_of(server, place),
            signer=load_signer("0a1b2c3d-unknown", server.key_path),
            state_directory=place.folder / "state",
            session_listen_ns=LISTEN_NS,
        )
        error = await refusal(daemon)
    assert isinstance(error, CredentialsError)
    assert "0a1b2c3d-unknown" in str(error)
    assert error.exit_code == 2


async def test_markets_that_do_not_exist_are_a_warning_and_none_at_all_an_error(
    place: Place,
) -> None:
    async with exchange(place) as server:
        signer = load_signer(server.key_id, server.key_path)
        async with RestClient(server.rest_url, signer) as rest:
            real = (await anext(rest.markets(status="open"))).ticker
        some = MarketsConfig(tickers=("KXNOPE-1", real, "KXNOPE-2"))
        daemon = daemon_of(server, place, markets=some)
        async with running(daemon):
            assert list(daemon.plant.entries) == [real]
        warnings = [fields["problem"] for fields in daemon.log.of("selection")]
        assert [text.split()[1] for text in warnings] == ["KXNOPE-1", "KXNOPE-2"]

        none = MarketsConfig(tickers=("KXNOPE-1",))
        error = await refusal(daemon_of(server, place, markets=none))
    assert isinstance(error, ConfigurationError)
    assert "KXNOPE-1" in str(error)


def test_a_plant_without_markets_is_refused_before_anything_is_opened(place: Place) -> None:
    with pytest.raises(ConfigurationError, match="no market is chosen"):
        Daemon(
            Config(), signer=load_signer("key", pem=_PEM), state_directory=place.folder / "state"
        )
    assert not (place.folder / "state").exists()


_PEM = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    ("markets", "channels"),
    [
        (MarketsConfig(series=("KXBTC",)), ("trade", "ticker", "market_lifecycle_v2")),
        (
            MarketsConfig(all_open=True, include_combos=True),
            ("trade", "ticker", "market_lifecycle_v2", "multivariate_market_lifecycle"),
        ),
        (
            MarketsConfig(tickers=("KXMVESPORTS-1",)),
            ("trade", "ticker", "market_lifecycle_v2", "multivariate_market_lifecycle"),
        ),
    ],
)
def test_the_busy_channel_of_combos_is_taken_only_if_any_may_be_wanted(
    markets: MarketsConfig, channels: tuple[str, ...]
) -> None:
    assert channels_of(Config(markets=markets)) == channels
