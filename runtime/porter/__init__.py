"""The porter: a process that brings weights into memory it shares with the engine.

Owns: fetching, verifying and placing them (loader/fill.py) apart from the engine. Must
not: be needed, decide what is loaded, or import torch: so it takes 40 MB.

Reading, hashing and placing a model takes a thread for milliseconds, and each of its
system calls lets go of the interpreter and asks for it again: beside loads in threads
of its own process a resident model's p99 was 3.8 times what it is alone
(docs/decisions/0019).

    fit.py        whether there may be one
    porter.py     the engine's side: who asks it, and what becomes of what it is asked
    orders.py     what it was told and has not answered; who waits for it
    process.py    its process: begun, watched, replaced, ended
    child.py      the same from within, from the first line to the last
    messages.py   what they say to each other
    disks.py      what the engine knows of its disk tier
    work.py       its own side; given.py: what an order gives it; seen.py: the engine's
                  slabs as it sees them
"""
