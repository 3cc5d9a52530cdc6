"""The porter: a process that brings weights into memory it shares with the engine.

Reading, hashing and placing a model takes a thread for milliseconds, and each of its
system calls lets go of the interpreter and asks for it again: beside loads in threads
of its own process a resident model's p99 was 3.8 times what it is alone, beside a
porter 1.4 (docs/decisions/0019). It needs no torch: 40 MB.

    porter.py     the engine's side: who asks it, and what becomes of what it is asked
    process.py    its process: begun, watched, replaced, ended
    messages.py   what they say to each other
    work.py       its own side
"""
