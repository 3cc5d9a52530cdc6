"""`hotset pack`: a model of your own becomes a model directory.

Owns: the options, where the result goes, and what is told of it. Must not: know how a
model is packed (loader/pack.py), or be run on anything that is not one's own: a .pt2
and a factory both run code.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loader.names import NAME_RULE, VERSION_RULE, valid_name, valid_version
from loader.pack import Exported, Packed, PackRefused, export, export_pt2, load_factory
from loader.pack import write as write_packed
from loader.pack_export import Wishes
from runtime.commands import Failed
from runtime.commands import pack_options as options
from runtime.commands.arrays import read_values
from runtime.commands.shelving import placed
from runtime.commands.units import size

T = TypeVar("T")


def pack(
    source: options.Source,
    out: options.Out,
    name: options.Name = "",
    version: options.Version = "1",
    example: options.Example = "",
    task: options.Task = "",
    outputs: options.Outputs = None,
    max_batch_size: options.MaxBatchSize = 64,
    dynamic: options.Dynamic = None,
    limit: options.Limit = None,
    range_: options.Range = None,
    label: options.Label = None,
    pin: options.Pin = False,
    priority: options.Priority = 0,
    tenant: options.Tenant = "",
) -> None:
    """Turn a PyTorch model into a model directory that hotset serves.

    The model is exported, written, read back as a server reads it, run on inputs it was
    not exported with and compared with the original; only then does it appear. A
    version that is there is never overwritten.

        hotset pack mymodels:build --name hello --out ./store

        hotset pack encoder.pt2 --out s3://models/prod --version 2

        hotset pack nets:bert --out ./store --dynamic ids=1 --example '{"ids": [[1]]}'

        hotset pack ./MiniLM --task feature-extraction --name minilm --out ./store

    Pack only what is yours: a factory and a .pt2 both run code when they are loaded.
    """
    place = _place(name or default_name(source), version)
    ranges = pairs("--range", range_ or (), bounds)
    limits = pairs("--limit", limit or (), integers)
    free = pairs("--dynamic", dynamic or (), integers)
    write = partial(
        write_packed,
        labels=pairs("--label", label or (), str),
        pin=pin,
        priority=priority,
        tenant=tenant,
    )
    wishes = Wishes(outputs, max_batch_size, free, ranges, limits)
    console = Console()
    try:
        with quiet(), console.status("exporting") as status:
            found = _exported(source, example, task, wishes)
            status.update("writing, reading back, comparing")
            packed = placed(out, lambda folder: write(found, folder / place))
    except PackRefused as error:
        raise Failed(str(error)) from None
    console.print(_told(packed, found, out))


def _place(name: str, version: str) -> Path:
    """Where the model lies in a store."""
    if not valid_name(name):
        raise typer.BadParameter(f"--name: a model's name has {NAME_RULE}")
    if not valid_version(version):
        raise typer.BadParameter(f"--version is {VERSION_RULE}")
    return Path(name, version)


def _exported(source: str, example: str, task: str, wishes: Wishes) -> Exported:
    """The architecture that the source has."""
    if task or Path(source).is_dir():
        return _from_hugging_face(source, example, task, wishes)
    if source.endswith(".pt2"):
        if not Path(source).is_file():
            raise Failed(f"{source}: there is no such file")
        if example or wishes.dynamic:
            raise typer.BadParameter(
                "a .pt2 brings its own --example, and its free dimensions (--dynamic)"
            )
        return export_pt2(
            source,
            outputs=wishes.outputs,
            max_batch_size=wishes.max_batch_size,
            ranges=wishes.ranges,
            limits=wishes.limits,
        )
    module, inputs = load_factory(source)
    return export(
        module,
        _examples(source, inputs, example),
        outputs=wishes.outputs,
        max_batch_size=wishes.max_batch_size,
        dynamic=wishes.dynamic,
        ranges=wishes.ranges,
        limits=wishes.limits,
    )


def _from_hugging_face(
    source: str, example: str, task: str, wishes: Wishes
) -> Exported:
    from loader.pack_hf import TASKS, export_hf  # the extra [hf]

    if task not in TASKS:
        raise typer.BadParameter(
            f"a Hugging Face directory needs --task, one of {', '.join(TASKS)}"
        )
    if example or wishes.dynamic or wishes.outputs or wishes.ranges or wishes.limits:
        raise typer.BadParameter(
            "with --task the inputs, outputs, their ranges and sizes are known: leave "
            "out --example, --output, --dynamic, --range and --limit"
        )
    return export_hf(source, task, max_batch_size=wishes.max_batch_size)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's log: what it says of a failure is in the exception as well."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def default_name(source: str) -> str:
    """What a model is called if nobody says: the factory, or the file."""
    if source.endswith(".pt2"):
        return Path(source).stem
    if Path(source).is_dir():
        return Path(source).resolve().name
    return source.rpartition(":")[2]


def pairs(option: str, items: Sequence[str], read: Callable[[str], T]) -> dict[str, T]:
    """NAME=VALUE, many times."""
    found: dict[str, T] = {}
    for item in items:
        name, equals, value = item.partition("=")
        try:
            if not name or not equals:
                raise ValueError
            found[name] = read(value)
        except ValueError:
            raise typer.BadParameter(f"{option} {item}: not of its form") from None
    return found


def integers(text: str) -> list[int]:
    """'1,2' -> [1, 2]."""
    return [int(part) for part in text.split(",")]


def bounds(text: str) -> tuple[int, int]:
    """'0:99' -> (0, 99)."""
    low, _, high = text.partition(":")
    return int(low), int(high)


def _examples(
    source: str, given: Mapping[str, torch.Tensor] | None, text: str
) -> Mapping[str, torch.Tensor]:
    """The example inputs: what the user wrote, else what the factory gave."""
    if text:
        return {
            # JSON's numbers are doubles; models are not.
            name: torch.from_numpy(
                array.astype("f4") if array.dtype.kind == "f" else array
            )
            for name, array in read_values(text).items()
        }
    if given is None:
        raise Failed(
            f"'{source}' gives no example inputs: let it return (module, inputs), or "
            "write --example '{\"x\": [[1.0, 2.0]]}'"
        )
    return given


def _told(packed: Packed, found: Exported, out: str) -> Table:
    """What was packed, for people."""
    spec, nodes = packed.spec, json.loads(found.graph_json)["nodes"]
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    rows = {
        "packed": f"{spec.name} version {spec.version}",
        "in": out,
        "inputs": ", ".join(_shape(t.name, t.datatype, t.shape) for t in spec.inputs),
        "outputs": ", ".join(_shape(t.name, t.datatype, t.shape) for t in spec.outputs),
        "max batch size": str(spec.max_batch_size),
        "weights": f"{size(spec.weights.size)} in {len(found.graph.weights)} tensors",
        "graph": f"{len(nodes)} nodes, {len({n['op'] for n in nodes})} kinds of op",
        "graph digest": f"{spec.graph.sha256[:16]} (shared by models that have it too)",
        "weights digest": spec.weights.sha256[:16],
        "max difference": f"{packed.difference:.2g} from the original",
    }
    if found.switched:
        rows["mode"] = "eval: it came in training mode and was switched over"
    for title, value in rows.items():
        made.add_row(title, Text(value))
    return made


def _shape(name: str, datatype: str, shape: Sequence[int]) -> str:
    return f"{name} {datatype}{list(shape)}"
