"""An answer as a user reads it: a table, REST's JSON, a file.

Owns: those forms. Must not: ask anybody, or import torch.
"""

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from protos import open_inference_pb2 as pb
from runtime.commands import Failed
from runtime.commands.arrays import Array, from_bytes
from runtime.printable import one_line

SHOWN = 200
"""Values of an output that a table shows in full."""


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of an answer."""

    name: str
    datatype: str
    array: Array


def read(answer: pb.ModelInferResponse) -> list[Output]:
    """Its tensors. Failed if they are not raw."""
    if len(answer.raw_output_contents) != len(answer.outputs):
        raise Failed("the answer has no raw contents, which this command needs")
    return [
        Output(o.name, o.datatype, from_bytes(data, o.datatype, list(o.shape)))
        for o, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
    ]


def save(path: Path, outputs: Sequence[Output]) -> None:
    """Write an .npz."""
    try:
        # Not np.savez: an output may be called `file`, as its own argument is.
        with zipfile.ZipFile(path, "w") as archive:
            for output in outputs:
                with archive.open(f"{output.name}.npy", "w") as member:
                    np.lib.format.write_array(member, output.array, allow_pickle=False)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None


def as_json(answer: pb.ModelInferResponse, outputs: Sequence[Output]) -> str:
    """The answer as the REST protocol writes it."""
    return json.dumps(
        {
            "model_name": answer.model_name,
            "model_version": answer.model_version,
            "outputs": [
                {
                    "name": output.name,
                    "datatype": output.datatype,
                    "shape": list(output.array.shape),
                    "data": [_number(value) for value in output.array.ravel().tolist()],
                }
                for output in outputs
            ],
        }
    )


def _number(value: object) -> object:
    """JSON knows no NaN and no infinity; protobuf writes them as these words."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"


def table(
    answer: pb.ModelInferResponse, outputs: Sequence[Output], seconds: float
) -> None:
    """Show it to people."""
    typer.echo(
        f"{one_line(answer.model_name)} version {one_line(answer.model_version)}, "
        f"{1000 * seconds:.1f} ms"
    )
    for output in outputs:
        values = np.array2string(
            output.array, precision=5, threshold=SHOWN, suppress_small=True
        )
        typer.echo(
            f"{one_line(output.name)} {output.datatype}{list(output.array.shape)}"
        )
        typer.echo("\n".join(f"  {line}" for line in values.splitlines()))
