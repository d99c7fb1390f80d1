"""A WebSocket that sends back what it gets.

    python -m trigi --app-dir examples websocket_echo:app
    python -m websockets ws://127.0.0.1:8000/        (pip install websockets)

Pings, compression, and the closing handshake are the server's business.
"""


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        raise NotImplementedError(scope["type"])
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
    print(f"closed with {message['code']} {message['reason']!r}")
