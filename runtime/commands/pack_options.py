"""The options of `hotset pack`: their types and what --help says of each.

Owns: words. Must not: read or check a value (runtime/commands/pack.py).
"""

from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="module:factory (a function that gives an nn.Module, or the module "
        "and its example inputs by name), a .pt2 file of your own, or (with "
        "--task) a Hugging Face directory.",
    ),
]
Out = Annotated[
    str,
    typer.Option(metavar="STORE", help="A folder, or such as s3://bucket/prefix."),
]
Name = Annotated[
    str, typer.Option(help="Name of the model. Default: the factory's or file's.")
]
Version = Annotated[str, typer.Option(help="Its version, a number.")]
Example = Annotated[
    str,
    typer.Option(
        metavar="JSON",
        help="An example of the inputs, for a factory that gives none: JSON by name, "
        "@FILE.json or - (floats are FP32, integers INT64).",
    ),
]
Task = Annotated[
    str,
    typer.Option(
        metavar="TASK",
        help="What a Hugging Face directory is for: feature-extraction (mean of "
        "the tokens, normalised) or sequence-classification.",
    ),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--output", metavar="NAME", help="Name an output. Repeat."),
]
MaxBatchSize = Annotated[
    int,
    typer.Option(min=0, help="Rows a call at most; 0: there is no batch dimension."),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=DIM,DIM",
        help="Free dimensions of an input besides the batch. Repeat.",
    ),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=N,N",
        help="Largest size of each dimension of an input, -1 for any. Repeat.",
    ),
]
Range = Annotated[
    list[str] | None,
    typer.Option(
        "--range",
        metavar="NAME=LOW:HIGH",
        help="Values that an integer input may have. Repeat.",
    ),
]
Label = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A label of the model. Repeat."),
]
Pin = Annotated[bool, typer.Option("--pin", help="Never evict it once it is resident.")]
Priority = Annotated[int, typer.Option(help="Higher stays longer when room is needed.")]
Tenant = Annotated[str, typer.Option(help="Whose it is.")]
