"""Bytes: from a URI to a model in device memory and out again.

Owns: the model format, the object store, the weights on their way. Must not: know
gRPC, the cache's state or its policies (import-linter holds this line).
"""
