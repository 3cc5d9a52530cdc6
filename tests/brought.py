"""Real models brought in as a server does, of one graph: `brought.bring(net, n)`."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from loader.graphs import GraphShelf
from loader.load import Loader, Model
from loader.manifest import read_manifest
from loader.memory import HostMemory
from loader.pack import export, write
from loader.store import Store

CPU = torch.device("cpu")


class Mlp(nn.Module):
    def __init__(self, seed: int, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(6, 8, bias), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x)) * 2 + torch.relu(self.first(x))
        return torch.softmax(self.second(h), 1), h


class FromOne(nn.Module):
    """Looks up what is counted from 1: a 0 is an index beyond its table."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(5, 3)

    def forward(self, x):
        return self.table(x - 1).sum(1)


class Attention(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return self.layer(x + self.shift).mean(1), self.shift.expand(x.shape[0], -1)


NETS = {
    "chain": (lambda seed: Mlp(seed).eval(), (2, 6)),
    "without a bias": (lambda seed: Mlp(seed, False).eval(), (2, 6)),
    "vmap": (lambda seed: Attention(seed).eval(), (2, 5, 8)),
}
"""What makes one of a seed, and the shape of its input."""

FROM_ONE = (FromOne, (2, 4))


@pytest.fixture
async def brought(tmp_path: Path):
    """Brings models in as a server does: `brought(net, count)`."""
    with ThreadPoolExecutor(2) as threads:
        store = Store.open(str(tmp_path))
        loader = Loader(store, GraphShelf(store, CPU, threads), HostMemory(), threads)

        made = itertools.count()

        async def bring(net: str, count: int) -> list[Model]:
            make, shape = NETS[net]
            x, ranges = torch.randn(shape), None
            if net == "from one":
                x, ranges = torch.ones(shape, dtype=torch.int64), {"x": (1, 5)}
            program = export(make(0), {"x": x}, ranges=ranges)
            models = []
            for seed in range(count):
                name = f"m{next(made)}"
                folder = tmp_path / name / "1"
                write(program, folder, weights=make(seed).state_dict())
                data = (folder / "model.json").read_bytes()
                spec = replace(read_manifest(data, name, "1"), directory=f"{name}/1")
                models.append(await loader.load(spec))
            return sorted(models, key=lambda model: model.place)

        yield SimpleNamespace(bring=bring, loader=loader)


def rows(net: str, count: int) -> torch.Tensor:
    shape = NETS[net][1]
    return torch.randn(count, *shape[1:], generator=torch.Generator().manual_seed(3))
