"""What may be queued between an asyncio application and the server, and how much of it."""

from __future__ import annotations

import sys
from typing import cast

from trigi.typing import Message

__all__ = ["MESSAGE_SIZE", "QUEUE_SIZE", "is_disconnect", "size_of", "to_queue"]

QUEUE_SIZE = 128 * 1024
"""Bytes of messages that one side may be ahead of the other: two pieces of the usual 64 KiB, one under way."""

MESSAGE_SIZE = 512
"""Bytes that a message counts for beside its data: so at most 256 empty ones are queued."""


def is_disconnect(message: Message) -> bool:
    """Whether it is the last that there is to receive."""
    return cast("str", message["type"]).endswith(".disconnect")


def size_of(message: Message) -> int:
    """What a message from the server counts for."""
    return MESSAGE_SIZE + sys.getsizeof(message.get("body") or message.get("bytes") or message.get("text"))


def to_queue(message: Message) -> tuple[Message, int] | None:
    """A message of the application's as it is now, and what it counts for; `None` if it is not to be queued.

    To be queued is what a response and a conversation consist of, if it can be kept from changing any more: the
    application may use it again, and its headers. All else is rare, or means something that must not be used again
    too early, like a file: the application has to wait until the server has handled it.
    """
    if type(message) is not dict:
        return None
    match message.get("type"):
        case "http.response.body":
            data = message.get("body", b"")
        case "http.response.start":
            headers = message.get("headers", ())
            if type(headers) not in (list, tuple):
                return None
            kept = [pair.copy() if type(pair) is list else pair for pair in headers]
            return {**message, "headers": kept}, MESSAGE_SIZE
        case "websocket.send":
            data = message.get("text") or message.get("bytes")
        case _:
            return None
    if type(data) not in (bytes, str):
        return None
    return message.copy(), MESSAGE_SIZE + sys.getsizeof(data)
