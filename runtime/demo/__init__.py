"""`hotset demo`: 200 trained models through a quarter of their bytes, checked.

Owns: the command and its options. Must not: import anything heavy before it is called;
the traffic process is a module of this package and must start without torch.
"""

from typing import Annotated

import typer


def demo(
    store: Annotated[
        str,
        typer.Option(
            help="Where the models go: a folder, or a URL such as s3://bucket/prefix."
        ),
    ] = ".demo/store",
    models: Annotated[
        int, typer.Option(min=6, help="Number of models to train.")
    ] = 200,
    requests: Annotated[
        int, typer.Option(min=1, help="Number of predicts to send.")
    ] = 20_000,
    budget: Annotated[
        str,
        typer.Option(
            help="The server's budget, as for `serve`. Default: a quarter of the bytes "
            "of all models."
        ),
    ] = "",
    concurrency: Annotated[
        int, typer.Option(min=1, help="Predicts under way at a time.")
    ] = 16,
    seed: Annotated[
        int, typer.Option(min=0, help="Models, their class orders and the traffic.")
    ] = 7,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train anew even if the store is there.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the server up until Ctrl-C.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="Device to serve on: auto, cpu, cuda:0.")
    ] = "auto",
) -> int:
    """Train 200 small models, serve them within a small budget, check every answer.

    The exit code is 0 only if all checks hold; each that does not is named.
    """
    from rich.console import Console

    from runtime.demo.course import run
    from runtime.demo.options import Options

    options = Options(
        store=store,
        models=models,
        requests=requests,
        budget=budget,
        concurrency=concurrency,
        seed=seed,
        fresh=fresh,
        keep=keep,
        device=device,
    )
    return 0 if run(options, Console()) else 1
