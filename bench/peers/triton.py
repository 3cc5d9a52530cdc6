"""Triton 2.51: the C++ server and its Python backend from the nvidia-pytriton wheel.

Two contenders: `triton` runs a request at a time, as it does by default; with
`triton-batch` its dynamic batcher is on, with no delay.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.peers.contender import Contender, Site, Venv
from bench.peers.running import free_port
from bench.peers.weights import ARRAYS, SERVERS

VENV = Venv("triton", ("nvidia-pytriton==0.7.0",))
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"

INPUT = 'input [{{name: "x", data_type: TYPE_FP32, dims: [{dims}]}}]'
OUTPUT = 'output [{{name: "output", data_type: TYPE_FP32, dims: [{dims}]}}]'
CONFIG = f"""name: "mlp"
backend: "python"
max_batch_size: {{batch}}
{INPUT.replace("{dims}", "{rows}64")}
{OUTPUT.replace("{dims}", "{rows}10")}
"""
BATCHING = "dynamic_batching {{}}\n"
LARGEST = 128


def _packages(site: Site) -> Path:
    return Path(site.python).parent.parent / "lib" / f"python{PYTHON}" / "site-packages"


def _repository(site: Site, batching: bool) -> Path:
    model = site.folder / "models" / "mlp"
    version = model / "1"
    version.mkdir(parents=True)
    text = CONFIG + (BATCHING if batching else "")
    said = text.format(
        batch=LARGEST if batching else 0, rows="" if batching else "-1, "
    )
    (model / "config.pbtxt").write_text(said)
    shutil.copy(SERVERS / "triton_model.py", version / "model.py")
    shutil.copy(SERVERS / "shared_mlp.py", version)
    shutil.copy(site.models, version / ARRAYS)
    return model.parent


def _backends(site: Site) -> Path:
    """The wheel's own backend, and the stub for our Python beside it."""
    wheel = _packages(site) / "pytriton" / "tritonserver"
    folder = site.folder / "backends"
    shutil.copytree(wheel / "backends", folder)
    shutil.copy(wheel / "python_backend_stubs" / PYTHON / STUB, folder / "python")
    return folder


def _command(site: Site, batching: bool) -> Sequence[str]:
    server = _packages(site) / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    return [
        str(server),
        f"--model-repository={_repository(site, batching)}",
        f"--backend-directory={_backends(site)}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={site.grpc_port}",
        "--http-address=127.0.0.1",
        f"--http-port={site.http_port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={free_port()}",
        "--allow-gpu-metrics=false",
    ]


def _environ(site: Site) -> Mapping[str, str]:
    binaries = str(Path(site.python).parent)
    libraries = _packages(site) / "nvidia_pytriton.libs"
    return {
        # The stub embeds the first Python it finds, and so takes its packages.
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{libraries}:{sysconfig.get_config_var('LIBDIR')}",
        "PYTHONPATH": str(SERVERS),
    }


def _contender(name: str, label: str, batching: bool) -> Contender:
    return Contender(
        name,
        label,
        lambda site: _command(site, batching),
        venv=VENV,
        environ=_environ,
    )


TRITON = _contender("triton", "Triton 2.51", False)
BATCHING_TRITON = _contender("triton-batch", "Triton 2.51, batching", True)
