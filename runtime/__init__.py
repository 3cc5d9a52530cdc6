"""Serving: the only package that knows asyncio and gRPC.

Owns: the cache's state (one event loop, no locks), the services, the commands.
"""
