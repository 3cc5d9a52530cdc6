"""`hotset infer`: one request to a running server, and its answer.

Owns: the request as a user writes it and the answer as a user reads it. Must not:
import torch, or know the server from inside: any server of the protocol will do.
"""

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import grpc
import typer

from protos import open_inference_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from runtime.commands import Failed, answer
from runtime.commands.arrays import Array, fit, read_value, read_values
from runtime.commands.arrays import to_bytes as raw

DEFAULT_URL = "127.0.0.1:8081"
CONNECT_S = 5.0
CHANNEL = (
    # Straight to the server the user named, whatever proxy the environment has.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class Form(StrEnum):
    """How the answer is shown."""

    TABLE = "table"
    JSON = "json"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Its name.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="NAME=VALUE",
        help="An input: JSON, @file.npy, @file.npz or @file.json. Repeat for more.",
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="JSON",
        help="All inputs at once: an object of name and value, or the body of a "
        "REST request; @FILE reads a file, - reads standard input.",
    ),
]
Version = Annotated[
    str, typer.Option(help="Version of the model. Default: the latest.")
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        "--output", "-o", metavar="NAME", help="Ask for this output only. Repeat."
    ),
]
Url = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="gRPC address of the server.")
]
Timeout = Annotated[
    float, typer.Option(min=0.001, help="Deadline of the request, in seconds.")
]
Shown = Annotated[Form, typer.Option("--format", help="How to show the answer.")]
Save = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the outputs to this .npz as well."),
]


def infer(
    model: Model,
    inputs: Inputs = None,
    text: Text = None,
    version: Version = "",
    outputs: Outputs = None,
    url: Url = DEFAULT_URL,
    timeout: Timeout = 60.0,
    form: Shown = Form.TABLE,
    save: Save = None,
) -> None:
    """Send one request to a running server and show the answer.

    A value is JSON, or a file:

        hotset infer digits-mlp-000 --input x='[[0, 1, 2, 3]]'

        hotset infer minilm -i input_ids=@ids.npy -i attention_mask=@mask.npy

        echo '{"x": [[1, 2]]}' | hotset infer hello --json - --format json

    Inputs are checked against the model's own metadata before anything is sent: floats
    are rounded to its datatype, nothing else is changed.
    """
    given = _given(inputs or [], text)
    with grpc.insecure_channel(url, options=CHANNEL) as channel:
        _connect(channel, url)
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            about = stub.ModelMetadata(
                pb.ModelMetadataRequest(name=model, version=version), timeout=timeout
            )
            request = _request(about, given, outputs or [], version)
            begun = time.perf_counter()
            got = stub.ModelInfer(request, timeout=timeout)
            seconds = time.perf_counter() - begun
        except grpc.RpcError as error:
            raise _refused(error) from None
    found = answer.read(got)
    if save is not None:
        answer.save(save, found)
    if form is Form.JSON:
        typer.echo(answer.as_json(got, found))
    else:
        answer.table(got, found, seconds)


def _refused(error: grpc.RpcError) -> Failed:
    unknown = error.code() is grpc.StatusCode.NOT_FOUND
    hint = "; see `hotset ls --store STORE`" if unknown else ""
    return Failed(f"{error.code().name}: {error.details()}{hint}")


def _given(inputs: Sequence[str], text: str | None) -> dict[str, Array]:
    given = read_values(text) if text is not None else {}
    for item in inputs:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"--input {item}: write it as NAME=VALUE")
        given[name] = read_value(name, value)
    if not given:
        raise typer.BadParameter(
            "give the inputs: --input x='[[1, 2]]', or --json '{\"x\": [[1, 2]]}'"
        )
    return given


def _connect(channel: grpc.Channel, url: str) -> None:
    try:
        grpc.channel_ready_future(channel).result(timeout=CONNECT_S)
    except grpc.FutureTimeoutError:
        raise Failed(
            f"no gRPC server answers at {url}: is that its gRPC port?"
        ) from None


def _request(
    about: pb.ModelMetadataResponse,
    given: Mapping[str, Array],
    outputs: Sequence[str],
    version: str,
) -> pb.ModelInferRequest:
    """The request, in the model's order of inputs. Failed if it cannot be right."""
    declared = {tensor.name: tensor for tensor in about.inputs}
    takes = ", ".join(f"{t.name} {t.datatype}{list(t.shape)}" for t in about.inputs)
    for name in given:
        if name not in declared:
            raise Failed(
                f"model '{about.name}' has no input '{name}'; it takes {takes}"
            )
    missing = [name for name in declared if name not in given]
    if missing:
        raise Failed(f"input '{missing[0]}' is missing; '{about.name}' takes {takes}")
    request = pb.ModelInferRequest(model_name=about.name, model_version=version)
    for name, tensor in declared.items():
        array = fit(name, given[name], tensor.datatype, list(tensor.shape))
        request.inputs.add(name=name, datatype=tensor.datatype, shape=array.shape)
        request.raw_input_contents.append(raw(array, tensor.datatype))
    known = {tensor.name for tensor in about.outputs}
    for name in outputs:
        if name not in known:
            raise Failed(
                f"model '{about.name}' has no output '{name}'; it has "
                f"{', '.join(sorted(known))}"
            )
        request.outputs.add(name=name)
    return request
