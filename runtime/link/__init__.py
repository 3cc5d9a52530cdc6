"""The engine in a process of its own: what crosses the seam, and how.

    front end                               engine
    remote.RemoteEngine  <-- stream.py -->  answering.Answering -> an Engine
             `------- memory.Region -------'

Messages (messages.py) go through a socket pair, tensors above a few KiB through shared
memory that one side writes and the other reads. Both are inherited from whoever started
the two (runtime/tree/): nothing has a name in a file system, and nobody else can join.
"""
