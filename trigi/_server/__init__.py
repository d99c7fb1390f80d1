"""Layer 3: many connections. What a program starts, and what the command line runs.

* serve          the three nested scopes of a server, and its graceful end
* run            a whole process: signals, logging, exit
* lifespan       the application's startup before them, its shutdown after them
* bind           bind strings -> listening sockets
* listeners      what accepts connections, on sockets, with TLS, up to a limit
* tls            settings -> ssl.SSLContext, and what a handshake says of itself
* application    "module:attribute" or an object -> an ASGI 3 application
"""
