"""MLServer, `mlserver==1.7.1`, with the model in the serving process.

Its default, a pool of one worker process, takes twice the CPU for every request; and
with uvloop 0.22 or later that worker does not start.
"""

import json
from collections.abc import Sequence

from bench.peers.contender import Contender, Site, Venv
from bench.peers.running import free_port
from bench.peers.weights import SERVERS


def _command(site: Site) -> Sequence[str]:
    settings = {
        "host": "127.0.0.1",
        "grpc_port": site.grpc_port,
        "http_port": site.http_port,
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    model = {
        "name": "mlp",
        "implementation": "mlserver_model.Mlp",
        "parameters": {"uri": str(site.models)},
    }
    (site.folder / "settings.json").write_text(json.dumps(settings))
    (site.folder / "model-settings.json").write_text(json.dumps(model))
    return [site.python, "-m", "mlserver.cli.main", "start", str(site.folder)]


MLSERVER = Contender(
    "mlserver",
    "MLServer 1.7.1",
    _command,
    venv=Venv("mlserver", ("mlserver==1.7.1", "uvloop<0.22")),
    environ=lambda site: {"PYTHONPATH": str(SERVERS)},
)
