"""A tree of processes: one engine, its front ends, and who watches over them.

    supervisor (no torch, no grpc)
      |-- engine      device, cache, store         runtime/tree/engine.py
      |-- next        an engine that has only imported, for when that one is lost
      `-- front end   gRPC and HTTP, N of them     runtime/tree/front.py, or
                      inside Envoy                 runtime/envoy/child.py, front.py

The supervisor owns what has to outlive an engine: the ports, the shared memory, who was
resident. It hands each pair of engine and front end a socket pair (runtime/link/); no
child knows another by name, and none outlives it.
"""
