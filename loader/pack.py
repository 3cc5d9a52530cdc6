"""`hotset pack`: from a model of one's own to a model directory.

Owns: the three ways in (a module, a saved .pt2, a factory by name). Must not: run in a
server. What is packed here is the packer's own: a .pt2 runs code when it is loaded, and
so does a factory, so neither is ever taken from a store or a client.

    pack(module, {"x": example}, "store/my-model/1")
    exported = export(module, {"x": example}); write(exported, ..., weights=other)
"""

import importlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from loader.pack_errors import PackRefused
from loader.pack_export import Exported, Wishes, export, exported, line_of
from loader.pack_original import Original
from loader.pack_write import Packed, write

__all__ = [
    "Exported",
    "PackRefused",
    "Packed",
    "export",
    "export_pt2",
    "load_factory",
    "pack",
    "pack_pt2",
    "write",
]


def pack(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    directory: str | os.PathLike[str],
    *,
    outputs: Sequence[str] | None = None,
    max_batch_size: int = 64,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    limits: Mapping[str, Sequence[int]] | None = None,
    labels: Mapping[str, str] | None = None,
    pin: bool = False,
    priority: int = 0,
    tenant: str = "",
) -> Packed:
    """Export and write in one go: `export`'s arguments, then `write`'s."""
    found = export(
        module,
        inputs,
        outputs=outputs,
        max_batch_size=max_batch_size,
        dynamic=dynamic,
        ranges=ranges,
        limits=limits,
    )
    return write(
        found, directory, labels=labels, pin=pin, priority=priority, tenant=tenant
    )


def pack_pt2(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    outputs: Sequence[str] | None = None,
    max_batch_size: int = 64,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    limits: Mapping[str, Sequence[int]] | None = None,
    labels: Mapping[str, str] | None = None,
    pin: bool = False,
    priority: int = 0,
    tenant: str = "",
) -> Packed:
    """Pack a .pt2 OF YOUR OWN: loading one runs code from it."""
    found = export_pt2(
        path,
        outputs=outputs,
        max_batch_size=max_batch_size,
        ranges=ranges,
        limits=limits,
    )
    return write(
        found, directory, labels=labels, pin=pin, priority=priority, tenant=tenant
    )


def export_pt2(
    path: str | os.PathLike[str],
    *,
    outputs: Sequence[str] | None = None,
    max_batch_size: int = 64,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    limits: Mapping[str, Sequence[int]] | None = None,
) -> Exported:
    """The architecture of a .pt2 OF YOUR OWN, saved with its example inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.load(os.fspath(path))
        except Exception as error:  # the archive may hold anything
            raise PackRefused(
                f"{path} is not a .pt2 torch can load: {error}"
            ) from error
        module = program.module()
    if program.example_inputs is None:
        raise PackRefused(f"{path} holds no example inputs; export it anew with some")
    args, kwargs = program.example_inputs
    if args and kwargs:
        raise PackRefused(f"{path} takes inputs both in order and by name")
    names = tuple(kwargs) if kwargs else program.graph_signature.user_inputs
    examples = tuple(kwargs.values()) if kwargs else tuple(args)
    if not all(isinstance(example, torch.Tensor) for example in examples):
        raise PackRefused(f"{path} takes inputs that are not tensors")
    original = Original(module, tuple(map(str, names)), bool(kwargs))
    wishes = Wishes(outputs, max_batch_size, None, ranges, limits)
    return exported(program, original, examples, wishes)


def load_factory(name: str) -> tuple[nn.Module, Mapping[str, torch.Tensor] | None]:
    """What `module:factory` gives: a module, or (module, example inputs by name)."""
    where, _, factory = name.partition(":")
    if not where or not factory:
        raise PackRefused(f"'{name}' is not of the form module:factory")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` would: the factory is a file of yours
    try:
        make = getattr(importlib.import_module(where), factory)
    except (ImportError, AttributeError) as error:
        raise PackRefused(f"'{name}' cannot be imported: {error}") from error
    except Exception as error:  # the owner's code, as it is imported
        raise _own_mistake(name, error) from error
    try:
        made = make()
    except Exception as error:  # the owner's code
        raise _own_mistake(name, error) from error
    pair = isinstance(made, tuple) and len(made) == 2
    module, inputs = made if pair else (made, None)
    if not isinstance(module, nn.Module):
        raise PackRefused(
            f"'{name}' gave {type(module).__name__}, not an nn.Module or a pair of one "
            "and its example inputs"
        )
    if inputs is not None and not _by_name(inputs):
        raise PackRefused(
            f"'{name}' gave example inputs that are not tensors by name; write them "
            'as {"x": torch.zeros(1, 2)}'
        )
    return module, inputs


def _own_mistake(name: str, error: Exception) -> PackRefused:
    return PackRefused(
        f"'{name}' raised {type(error).__name__}: {error}{line_of(error)}"
    )


def _by_name(inputs: object) -> bool:
    return isinstance(inputs, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor)
        for key, value in inputs.items()
    )
