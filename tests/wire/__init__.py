"""The wire, end to end: a real grpc.aio server, real sockets on 127.0.0.1."""
