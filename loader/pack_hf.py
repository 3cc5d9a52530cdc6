"""From a Hugging Face directory of one's own to a model directory (extra `[hf]`).

Owns: which task becomes which function of token ids. Must not: fetch anything, run code
that lies in the directory, or unpickle: only `config.json` and safetensors are read.

The tokenizer stays with the client: a model takes token ids.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from loader.pack_errors import PackRefused
from loader.pack_export import Exported, export
from loader.pack_write import Packed, write

LENGTH = 8
"""Tokens in the example; the length is free."""

SMALLEST_COUNT = 1e-9
"""Below one token, yet not zero: a row whose mask is empty has no mean."""


class Transformer(Protocol):
    """What we use of a transformers model besides calling it."""

    config: object

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of words."""
        ...


class Embedding(nn.Module):
    """The mean of a text's tokens, made one long: a sentence model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`embedding`, [batch, hidden]."""
        answer = self.model(**_given(input_ids, attention_mask, token_type_ids))
        tokens: Tensor = answer.last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=SMALLEST_COUNT)
        return {"embedding": nn.functional.normalize(mean, dim=1)}


class Classification(nn.Module):
    """A score for each class."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`logits`, [batch, classes]."""
        answer = self.model(**_given(input_ids, attention_mask, token_type_ids))
        return {"logits": answer.logits}


def _given(ids: Tensor, mask: Tensor, types: Tensor | None) -> dict[str, Tensor]:
    given = {"input_ids": ids, "attention_mask": mask}
    return given if types is None else {**given, "token_type_ids": types}


@dataclass(frozen=True, slots=True)
class Task:
    """`loads`: the transformers class; `makes`: our function around the model."""

    loads: str
    makes: Callable[[nn.Module], nn.Module]


TASKS = {
    "feature-extraction": Task("AutoModel", Embedding),
    "sequence-classification": Task(
        "AutoModelForSequenceClassification", Classification
    ),
}


def pack_hf(
    source: str | os.PathLike[str],
    task: str,
    directory: str | os.PathLike[str],
    *,
    max_batch_size: int = 64,
    labels: Mapping[str, str] | None = None,
    pin: bool = False,
    priority: int = 0,
    tenant: str = "",
) -> Packed:
    """Pack the model that lies in the directory `source`, for one of `TASKS`."""
    found = export_hf(source, task, max_batch_size=max_batch_size)
    named = {"task": task, **(labels or {})}
    return write(
        found, directory, labels=named, pin=pin, priority=priority, tenant=tenant
    )


def export_hf(
    source: str | os.PathLike[str], task: str, *, max_batch_size: int = 64
) -> Exported:
    """The architecture and weights of a Hugging Face directory."""
    if task not in TASKS:
        raise PackRefused(f"task '{task}': must be one of {', '.join(TASKS)}")
    model = _loaded(Path(source), TASKS[task].loads)
    rows = _rows(model)
    shape = (2, LENGTH)
    inputs = {name: torch.zeros(shape, dtype=torch.int64) for name in rows}
    inputs["input_ids"] = torch.arange(2 * LENGTH).reshape(shape) % rows["input_ids"]
    inputs["attention_mask"] = torch.ones(shape, dtype=torch.int64)
    inputs["attention_mask"][1, LENGTH // 2 :] = 0
    return export(
        TASKS[task].makes(model),
        inputs,
        max_batch_size=max_batch_size,
        dynamic={name: [1] for name in inputs},
        ranges={name: (0, count - 1) for name, count in rows.items()},
        limits={name: (-1, _longest(model)) for name in inputs},
    )


def _loaded(source: Path, kind: str) -> nn.Module:
    if not (source / "config.json").is_file():
        raise PackRefused(f"{source} is not a Hugging Face directory: no config.json")
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise PackRefused("this needs transformers: pip install hotset[hf]") from error
    try:
        model = getattr(transformers, kind).from_pretrained(
            str(source),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # never the pickles that may lie beside them
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise PackRefused(f"{source} does not load as {kind}: {error}") from error
    if not isinstance(model, nn.Module):
        raise PackRefused(f"{source} is no {kind}")
    return model.eval()


def _rows(model: nn.Module) -> dict[str, int]:
    """The inputs the model takes, and how many values each may have."""
    found = cast(Transformer, model)
    words = found.get_input_embeddings().num_embeddings
    rows = {"input_ids": words, "attention_mask": 2}
    types = getattr(found.config, "type_vocab_size", 0) or 0
    if types > 1:
        rows["token_type_ids"] = types
    return rows


def _longest(model: nn.Module) -> int:
    """Tokens that the table of positions has room for; -1 without such a table.

    Models of RoBERTa's kind begin to count behind the padding's index.
    """
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            skipped = 0 if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - skipped
    return -1
