"""The control groups above this process, version 2 or 1 of them.

Owns: where they are. Must not: know what they bound (runtime/hostram.py: memory;
loader/quota.py: time).

The tightest bound need not be the innermost group's: every ancestor's counts.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def groups(controller: str, root: Path = ROOT) -> Iterator[tuple[Path, bool]]:
    """The folder of each group above us that has this controller, innermost first; True
    for version 2."""
    for line in lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon or (controllers and controller not in controllers.split(",")):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        # A container may see only its own group, mounted as if it were the root, while
        # the path is still the host's: folders that are not there are skipped.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            yield folder, not controllers


def lines(path: Path) -> list[str]:
    """Of a file of theirs, but empty ones; none if it is not there. A group's name is
    any bytes."""
    try:
        said = path.read_text(errors="surrogateescape")
    except OSError:
        return []
    return [line for line in said.split("\n") if line]
