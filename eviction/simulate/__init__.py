"""The simulator's engine: what a policy would have done on a trace that is over.

Owns: the trace as data, the replay (loads take no time), the waits (they do), the
clairvoyant bounds. Must not: read or write files, print, or import torch; whoever
calls brings the trace and shows the result (runtime/simulate.py, bench/policies.py).
"""
