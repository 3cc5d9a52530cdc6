"""The front end `zttp`: gRPC over HTTP/2 on the engine's own event loop.

`zttp` reads and writes the frames and does no I/O; what is here gives it bytes, and
gives runtime/asgi/ the calls. There is no thread between a socket and the engine, which
is what a hit costs elsewhere (docs/decisions/0023-http2-on-the-loop.md).
"""
