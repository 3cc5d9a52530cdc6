"""`python -m runtime.tree ROLE FD PARENT`: a child of the supervisor, called by nobody
else (runtime/tree/member.py)."""

import sys

from runtime.tree.orphan import die_with

if __name__ == "__main__":
    role, fd, parent = sys.argv[1:]
    die_with(int(parent))
    from runtime.tree.member import main

    sys.exit(main("engine" if role == "engine" else "front", int(fd)))
