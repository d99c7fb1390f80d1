"""What requests share: made at startup, found in `scope["state"]`, ended after the last request.

    python -m trigi --app-dir examples --lifespan on lifespan_state:app
    curl http://127.0.0.1:8000/

Here it is a reading that a background task keeps fresh. The task lives in a nursery of the lifespan's, so it can
neither outlive the server nor fail unseen.
"""

import random

import trio


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(scope["state"], receive, send)
    elif scope["type"] == "http":
        body = f"{scope['state']['sensor'].temperature:.1f} °C\n".encode()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body})
    else:
        raise NotImplementedError(scope["type"])


async def lifespan(state, receive, send):
    await receive()  # lifespan.startup
    async with trio.open_nursery() as nursery:
        state["sensor"] = sensor = Sensor()
        nursery.start_soon(sensor.keep_reading)
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown: every request has ended
        nursery.cancel_scope.cancel()
    print("sensor released")
    await send({"type": "lifespan.shutdown.complete"})


class Sensor:
    """Something that is opened once."""

    temperature = 20.0

    async def keep_reading(self):
        """Read it every second."""
        while True:
            self.temperature += random.uniform(-0.1, 0.1)  # noqa: S311 - weather, not cryptography
            await trio.sleep(1)
