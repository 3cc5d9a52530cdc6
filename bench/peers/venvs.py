"""Environments of the contenders: made once, on demand, with pinned versions.

Owns: the folder they live in, which git ignores: bench/.peers, or $HOTSET_BENCH_PEERS.
Must not: touch the environment that runs the bench. A peer's packages would change the
very versions that we measure ourselves with.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.peers.contender import Unavailable, Venv

VARIABLE = "HOTSET_BENCH_PEERS"
TORCH = "torch==2.13.0"
MADE = ".made"
"""Written last, with the requirements: an environment without it is half made."""

LAST_WORDS = 300
"""Characters of pip's complaint that are worth showing."""


def home() -> Path:
    """Where the environments are."""
    told = os.environ.get(VARIABLE)
    return Path(told) if told else Path(__file__).parent.parent / ".peers"


def is_made(venv: Venv) -> bool:
    """True if it is there, with these very requirements."""
    marker = home() / venv.name / MADE
    return marker.is_file() and marker.read_text() == _wanted(venv)


def python(venv: Venv | None) -> str:
    """The interpreter to run a contender with."""
    if venv is None:
        return sys.executable
    return str(home() / venv.name / "bin" / "python")


def make(venv: Venv) -> None:
    """Make it anew: a minute or two, about a gigabyte. Raises Unavailable."""
    folder = home() / venv.name
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    install = [python(venv), "-m", "pip", "install", "-qq", TORCH]
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        install,  # alone first: whatever depends on it must find this build in place
        [*install, *venv.requirements],
    )
    for step in steps:
        ended = subprocess.run(step, capture_output=True, text=True, check=False)
        if ended.returncode:
            why = (ended.stderr or ended.stdout).strip()[-LAST_WORDS:]
            raise Unavailable(f"its packages could not be installed: {why}")
    (folder / MADE).write_text(_wanted(venv))


def _wanted(venv: Venv) -> str:
    return "\n".join((TORCH, *venv.requirements, ""))
