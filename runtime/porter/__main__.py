"""`python -m runtime.porter FD PARENT`: a porter, called by nobody but its engine
(runtime/porter/process.py).

Owns: its first lines. Must not: import what takes time before it would die with us.
"""

import sys

from runtime.tree.orphan import die_with

if __name__ == "__main__":
    fd, parent = sys.argv[1:]
    die_with(int(parent))
    from runtime.porter.child import main

    main(int(fd))
