"""gRPC over ASGI: the services of runtime/methods.py behind an HTTP server.

Owns: gRPC's framing, headers, trailers, deadlines and endings, as ASGI messages. Must
not: know an engine, or which server calls it. HTTP/2 itself (streams, windows, floods,
TLS) is the server's; ours are Envoy (runtime/envoy) and runtime/http2.
"""
