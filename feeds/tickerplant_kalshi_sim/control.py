"""The operator's endpoints beside the exchange's: faults, flow, the exchange's own books, counters.

POST /sim/fault   {"kind":"skip_seq","channel":"orderbook_delta"}
POST /sim/flow    {"action":"pause"} or {"action":"resume"}
GET  /sim/books   {"ticker":{"bids":[[price_e4,size_e2],...],"asks":[...]},...} in YES prices, ascending
GET  /sim/stats   counters
"""

from typing import Any, Literal, Protocol

import msgspec
from aiohttp import web

from tickerplant.errors import ConfigurationError
from tickerplant_kalshi_sim.book import YesBook
from tickerplant_kalshi_sim.faults import Fault, parse_fault


class FlowRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `/sim/flow`."""

    action: Literal["pause", "resume"]


class SimulationStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start. `frames_sent` is by frame type; `faults` by kind, only those that were made."""

    now_ns: int
    flow_paused: bool
    markets: int
    connections: int
    connections_accepted: int
    handshakes_refused: int
    commands: int
    rest_requests: int
    frames_sent: dict[str, int]
    frames_sent_total: int
    faults: dict[str, int]
    ticks: int
    ticks_skipped: int


class Controlled(Protocol):
    """What the operator can do to a simulation."""

    def inject(self, fault: Fault) -> int:
        """Make a fault; returns on how many connections."""

    def pause_flow(self) -> None:
        """Stop everything that changes a book."""

    def resume_flow(self) -> None:
        """Let it go on."""

    def books(self) -> dict[str, YesBook]:
        """The exchange's own books."""

    def stats(self) -> SimulationStats:
        """Counters."""


def add_control_routes(application: web.Application, simulation: Controlled) -> None:
    """Add `/sim/...` to `application`."""

    async def fault(request: web.Request) -> web.Response:
        try:
            made = simulation.inject(parse_fault(await request.read()))
        except ConfigurationError as error:
            return _answer({"error": str(error)}, 400)
        return _answer({"connections": made})

    async def flow(request: web.Request) -> web.Response:
        try:
            body = msgspec.json.decode(await request.read(), type=FlowRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _answer({"error": str(error)}, 400)
        if body.action == "pause":
            simulation.pause_flow()
        else:
            simulation.resume_flow()
        return _answer({"flow_paused": body.action == "pause"})

    async def books(_: web.Request) -> web.Response:
        rows = simulation.books().items()
        return _answer({ticker: {"bids": bids, "asks": asks} for ticker, (bids, asks) in rows})

    async def stats(_: web.Request) -> web.Response:
        return _answer(simulation.stats())

    application.router.add_post("/sim/fault", fault)
    application.router.add_post("/sim/flow", flow)
    application.router.add_get("/sim/books", books)
    application.router.add_get("/sim/stats", stats)


def _answer(body: Any, status: int = 200) -> web.Response:
    content = msgspec.json.encode(body)
    return web.Response(body=content, status=status, content_type="application/json")
