"""The command line: which commands there are, and how each one ends.

Owns: the table of commands, exit codes, and how an error is told. Must not: import a
command before it is called: `hotset --help` needs neither torch nor grpc.

Exit codes: 0 done; 1 it failed, and standard error says why in a sentence; 2 the
command was not understood; 130 interrupted. A command is a function with typer's
annotations; what it returns is its exit code (None is 0). It raises `Failed` to end
with 1, `typer.BadParameter` to end with 2.
"""

import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from runtime.commands import Failed
from runtime.printable import one_line

Function = Callable[..., int | None]

HELP = """
hotset keeps the hot set of hundreds of small PyTorch models in GPU memory.

One process serves a whole bucket of models over gRPC; a model is loaded when a request
needs it and evicted when its memory is worth more to another.

A first look (trains, serves and checks 200 models):

    hotset demo

Pack a model of your own, serve it, ask it:

    hotset pack mymodels:build --name hello --out ./store

    hotset serve --store ./store

    hotset infer hello --input x='[[1, 2]]'
"""


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is, and what --help says of it in one line."""

    module: str
    function: str
    summary: str

    def load(self, name: str) -> TyperCommand:
        """Import it. The only place that does."""
        function = getattr(import_module(self.module), self.function)
        # Plain help and plain errors: they are read in logs and by scripts too.
        app = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        app.command(name, short_help=self.summary)(ending(name, function))
        command = typer.main.get_command(app)
        assert isinstance(command, TyperCommand)
        return command


COMMANDS: Mapping[str, Command] = {
    "serve": Command("runtime.commands.serve", "serve", "Serve the models of a store."),
    "demo": Command(
        "runtime.demo", "demo", "200 trained models through a small budget, checked."
    ),
    "pack": Command(
        "runtime.commands.pack", "pack", "Turn a PyTorch model into a model directory."
    ),
    "infer": Command(
        "runtime.commands.infer", "infer", "Send one request and show the answer."
    ),
    "top": Command(
        "runtime.commands.top", "top", "Live view of what a server holds and does."
    ),
    "explain": Command(
        "runtime.commands.explain", "explain", "Say why a model is in memory, or not."
    ),
    "ls": Command(
        "runtime.commands.ls", "ls", "List the models of a store or of a server."
    ),
    "simulate": Command(
        "runtime.commands.simulate", "simulate", "Compare eviction policies on a trace."
    ),
    "plan": Command(
        "runtime.commands.plan", "plan", "Say how much memory a trace's traffic needs."
    ),
}


class Deferred(TyperCommand):
    """Stands for a command in --help; becomes the real one when it is called."""

    # Typer's own copy of click is private to it: its types cannot be named here.
    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """The context of the real command, in which typer goes on."""
        assert self.name is not None
        real = COMMANDS[self.name].load(self.name)
        return real.make_context(info_name, args, parent, **extra)


def ending(name: str, function: Function) -> Callable[..., None]:
    """The function, with its result as exit code and `Failed` as a sentence."""

    @functools.wraps(function)
    def run(*args: object, **options: object) -> None:
        try:
            code = function(*args, **options)
        except Failed as error:
            for line in str(error).splitlines():
                typer.echo(f"hotset {name}: {one_line(line)}", err=True)
            code = 1
        raise typer.Exit(code or 0)

    return run


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(f"hotset {version_of('hotset')}")
    except PackageNotFoundError:
        typer.echo("hotset, not installed (run from its sources)")
    raise typer.Exit


def hotset(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """What comes before a command; typer takes the text of --help from HELP."""


def build() -> typer.Typer:
    """The application."""
    app = typer.Typer(
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(hotset)
    for name, command in COMMANDS.items():
        app.command(name, cls=Deferred, help=command.summary)(lambda: None)
    return app


def main() -> None:
    """The console script."""
    try:
        build()(prog_name="hotset")
    except SystemExit as ended:
        if "obstore" in sys.modules:
            _leave(ended.code)
        raise


def _leave(code: object) -> NoReturn:
    """End the process without taking the interpreter apart.

    obstore's threads outlive the call they answered by some microseconds, and there is
    no waiting for them: one that lets go of a Python object while the interpreter is
    taken apart aborts the process (in half of the runs of an empty listing on one
    core). All that is ours has ended by now; what libraries registered is called.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
