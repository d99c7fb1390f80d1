"""A request's body, read piece by piece: of any size, in little memory.

    python -m trigi --app-dir examples upload:app
    curl --data-binary @README.md http://127.0.0.1:8000/

The server reads at most two pieces ahead (of 64 KiB), so an application that is slow slows its client down.
"""

import hashlib


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    digest, size, more = hashlib.sha256(), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":  # in the middle: what came is not the whole body
            print(f"upload given up after {size} bytes")
            return
        digest.update(message["body"])
        size += len(message["body"])
        more = message["more_body"]
    body = f"{size} bytes, sha256 {digest.hexdigest()}\n".encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
