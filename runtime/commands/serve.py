"""`hotset serve`: settings in, a running server out.

Owns: the flags, which are the fields of Settings and nothing else. Must not: know what
a setting does (runtime/compose.py).
"""

import asyncio
import inspect
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

from runtime import poller
from runtime.commands import Failed
from runtime.config import Settings
from runtime.sources import (
    CONFIG_VARIABLE,
    SettingsRefused,
    load,
    unknown_variables,
    values,
)


def serve(config: Path | None = None, **flags: str | bool | None) -> int:
    """Serve the models of a store over gRPC (Open Inference Protocol v2) and HTTP.

    A folder, or a bucket with the environment's credentials:

        hotset serve --store ./store --budget 512MiB

        hotset serve --store s3://models/prod --device cuda:0 --host 0.0.0.0

    For several times the requests per core (pip install 'hotset[zttp]'), or for TLS,
    tokens and rate limits as well, inside Envoy (pip install 'hotset[envoy]'):

        hotset serve --store ./store --frontend zttp

        hotset serve --store ./store --frontend envoy

    Every option is also read from the environment (--budget is HOTSET_BUDGET) and from
    a TOML file (budget = "80%"). A flag wins over the environment, the environment over
    the file. SIGTERM ends it: requests in flight finish within --grace.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = load(given, config)
    except SettingsRefused as error:
        raise typer.BadParameter(str(error)) from None
    if not settings.store:
        raise typer.BadParameter(
            "say where the models are: --store ./folder, or --store s3://bucket/prefix"
        )
    if settings.frontend == "zttp" and find_spec("zttp") is None:
        raise Failed("--frontend zttp needs an extra: pip install 'hotset[zttp]'")
    if settings.frontend == "grpcio":
        poller.spare_a_hop(os.environ)
    if settings.frontends:
        return _watch_over(settings, values(given, config))
    if settings.frontend == "envoy":
        return _become_envoy(settings, given, config)
    return _run(settings)


def _become_envoy(
    settings: Settings, given: Mapping[str, str | bool], config: Path | None
) -> int:
    from loader.store import Store
    from runtime.envoy.launch import CannotLaunch, launch
    from runtime.ports import CannotListen

    try:
        Store.open(settings.store)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        launch(settings, given, config)
    except (CannotLaunch, CannotListen) as error:
        raise Failed(str(error)) from error


def _watch_over(settings: Settings, raw: Mapping[str, object]) -> int:
    """One engine and several front ends, each in a process of its own."""
    from runtime.ports import CannotListen
    from runtime.tree.supervisor import CannotServe, Supervisor

    if settings.frontend == "envoy":
        _can_become_envoy(settings)

    async def run() -> int:
        return await Supervisor(settings, raw).run()

    _begin(settings)
    try:
        return asyncio.run(run())
    except (CannotListen, CannotServe) as error:
        raise Failed(str(error)) from error


def _can_become_envoy(settings: Settings) -> None:
    """That front ends can, said before any is started."""
    from runtime.envoy.launch import CannotLaunch, installed

    if settings.envoy_config and settings.frontends > 1:
        # Only with enable_reuse_port do several listen on one port, and what the file
        # limits (requests, connections) each would count for itself.
        raise typer.BadParameter(
            "--envoy-config works with --frontends 1: its ports and limits are those "
            "of one Envoy"
        )
    try:
        installed()
    except CannotLaunch as error:
        raise Failed(str(error)) from error


def _begin(settings: Settings) -> None:
    """The first lines of the log, if the store's URL can be meant."""
    import structlog

    from loader.store import Store
    from runtime import logs

    try:
        Store.open(settings.store)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    logs.configure(settings.log_format, settings.log_level)
    log = structlog.get_logger()
    log.info("starting", **settings.shown())
    for variable in unknown_variables():
        log.warning("a variable that means nothing is ignored", variable=variable)


def _run(settings: Settings) -> int:
    # What needs torch and grpc comes in only now that the settings are good.
    from runtime import compose
    from runtime.loading import Unservable
    from runtime.nvml import GaugeUnavailable
    from runtime.ports import CannotListen

    _begin(settings)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(compose.serve(settings))
    except (Unservable, GaugeUnavailable, CannotListen) as error:
        raise Failed(str(error)) from error


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: a hit takes 7 % less of p50 and CPU at concurrency
    1, 1 to 3 % less at 8 (`python -m bench.floor`). None: asyncio's own."""
    try:
        import uvloop
    except ImportError:  # not on this platform
        return None
    return uvloop.new_event_loop


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """A setting as an option. Not given is None: then other sources decide."""
    # Everything is read as text and parsed in one place, wherever it comes from.
    kind: object = bool | None if field.annotation is bool else str | None
    option = typer.Option(
        help=field.description,
        metavar=field.title,
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def _config_option() -> inspect.Parameter:
    option = typer.Option(
        help=f"TOML file with settings ({CONFIG_VARIABLE}).", metavar="FILE"
    )
    return inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, option],
    )


# Typer makes the options from this.
serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_config_option(), *(_option(n, f) for n, f in Settings.model_fields.items())]
)
