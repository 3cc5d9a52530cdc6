"""The model as its owner has it: how to call it, and what it answers.

Owns: the one way a module is called, for the export and for every comparison. Must not:
export.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from loader.pack_errors import PackRefused

T = TypeVar("T")


@contextmanager
def serving() -> Iterator[None]:
    """As a server runs it: no gradients; and attention by its parts.

    torch's fused encoder layer has no batching rule, and gives other roundings.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


_BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


def _params(module: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(module.forward).parameters.values())


@dataclass(frozen=True, slots=True)
class Original:
    """A module, the names of its inputs, and whether they are its forward's own."""

    module: nn.Module
    names: tuple[str, ...]
    by_name: bool

    @classmethod
    def of(cls, module: nn.Module, names: Sequence[str]) -> "Original":
        """By name if `forward` has parameters of these names, else in order."""
        known = {param.name for param in _params(module) if param.kind in _BY_NAME}
        return cls(module, tuple(names), known.issuperset(names))

    def shapes(self, dims: dict[str, T]) -> dict[str, T] | tuple[object, ...]:
        """Something for each input, laid out as torch.export wants it beside them."""
        if self.by_name:
            return dims
        ordered = tuple(dims.values())
        kinds = [param.kind for param in _params(self.module)]
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            return ordered
        plain = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        return (*ordered[:plain], ordered[plain:])

    def arguments(
        self, inputs: Sequence[torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Positional and keyword arguments for `forward`."""
        if self.by_name:
            return (), dict(zip(self.names, inputs, strict=True))
        return tuple(inputs), {}

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The outputs by name, with other weights than its own if given.

        Of a tied weight only one name may be among them.
        """
        args, kwargs = self.arguments(inputs)
        with serving():
            if weights is None:
                answer = self.module(*args, **kwargs)
            else:
                answer = torch.func.functional_call(
                    self.module, dict(weights), args, kwargs
                )
        return named(answer)


def named(answer: object) -> dict[str, torch.Tensor]:
    """What a module returned, flat, in the order torch flattens it; None left out."""
    flat = dict(_flat(answer, ""))
    if not flat:
        raise PackRefused("the module returns no tensor")
    return flat


def _flat(answer: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(answer, torch.Tensor):
        yield name or "output", answer
    elif isinstance(answer, Mapping):
        for key, value in answer.items():
            yield from _flat(value, f"{name}_{key}" if name else str(key))
    elif isinstance(answer, tuple | list):
        fields = getattr(answer, "_fields", range(len(answer)))
        for key, value in zip(fields, answer, strict=True):
            part = f"{name or 'output'}_{key}" if isinstance(key, int) else str(key)
            yield from _flat(value, part)
    elif answer is not None:
        raise PackRefused(
            f"the module returns a {type(answer).__name__}; outputs must be tensors"
        )
