"""Layer 1: what bytes and messages mean.

Everything here is sans-io: no trio, no sockets, no clock, no logging. Bytes go in and events come out; what is
wrong raises an exception of `trigi.exceptions` that says whose fault it is.

    asgi            what an application may send, and when: the tables
    events          what a codec can say
    scope           a request and its connection as an ASGI scope
    headers         header fields: names, values, lists, hosts
    http1           HTTP/1.1 bytes -> events: framing, limits and strictness, for every head parser
    http1_head      what a request's head means
    http1_h11       parses a request head with h11
    http1_httptools     parses it with httptools
    http1_encode    responses -> HTTP/1.1 bytes
    response_head   the head of a response: checked, and known again
    websocket_handshake   how a request becomes a WebSocket, and what is agreed on
    websocket       its frames <-> messages, over wsproto
    websocket_frames      frames that are whole messages, which wsproto need not see
"""
