"""A simulated Kalshi exchange: a real WebSocket and REST server, usable as a product feature.

    async with SimulationServer(SimulationConfig(websocket_port=0, rest_port=0)) as server:
        print(server.websocket_url, server.rest_url, server.key_id, server.key_path)

Pure parts (seeded, on a virtual clock): markets, book, frames, flow, lifecycle, reference, exchange, subscriptions,
commands, faults, replay. Shells: keys, websocket, rest, control, server. `SimulationServer` is in the module
`server` and needs the `daemon` extra.
"""
