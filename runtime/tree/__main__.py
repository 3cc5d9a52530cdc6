"""`python -m runtime.tree ROLE FD PARENT`: a child of the supervisor, called by nobody
else (runtime/tree/member.py, runtime/envoy/child.py)."""

import sys

from runtime.tree.orphan import die_with

if __name__ == "__main__":
    role, fd, parent = sys.argv[1:]
    die_with(int(parent))
    if role == "envoy":
        from runtime.envoy import child

        sys.exit(child.main(int(fd)))
    from runtime.tree import member

    sys.exit(member.main("engine" if role == "engine" else "front", int(fd)))
