"""Serve on a unix socket, for a proxy on the same machine: a program of its own, with its settings in it.

    python examples/unix_socket.py
    curl --unix-socket hello.sock http://localhost/

The socket's file is created with the mode asked for, replaces one that a killed server has left, and is removed at
the end. As a command: `python -m trigi --app-dir examples --uds hello.sock --uds-mode 660 unix_socket:app`.
"""

import trigi


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"Hello from %s\n" % scope["server"][0].encode()})


if __name__ == "__main__":
    trigi.run(app, trigi.Config(bind="unix:hello.sock", uds_mode=0o660))
