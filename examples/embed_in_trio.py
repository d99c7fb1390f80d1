"""A server inside a trio program: one task among others, which starts, says where it listens, and ends with them.

    python examples/embed_in_trio.py

The program does its work, says over HTTP how far it is, and has the server shut down gracefully when it is done.
Embedded, trigi touches no signals, and configures no logging.
"""

import functools

import trio

import trigi

STEPS = 20


async def main():
    finished = 0
    done = trio.Event()

    async def show(scope, receive, send):
        """The application."""
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"%d of %d steps\n" % (finished, STEPS)})

    config = trigi.Config(bind="127.0.0.1:0", lifespan="off")
    serve = functools.partial(trigi.serve, show, config, shutdown_trigger=done.wait)
    async with trio.open_nursery() as nursery:
        [url] = await nursery.start(serve)  # returns when the server listens
        print(f"progress at {url}")
        for finished in range(1, STEPS + 1):  # noqa: B007 - show() tells it
            await trio.sleep(0.1)
        done.set()
    print("the work is done, and the server has stopped")


if __name__ == "__main__":
    trio.run(main)
