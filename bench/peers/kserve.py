"""The KServe SDK's model server, `kserve==0.21.0`.

Its ports are on all addresses, with no option: it runs where there is no network.
"""

from bench.peers.contender import Contender, Venv
from bench.peers.weights import SERVERS

KSERVE = Contender(
    "kserve",
    "KServe SDK 0.21",
    lambda site: [
        *(site.python, str(SERVERS / "kserve_server.py")),
        *(str(site.grpc_port), str(site.http_port), str(site.models)),
    ],
    venv=Venv("kserve", ("kserve==0.21.0",)),
    environ=lambda site: {"PYTHONPATH": str(SERVERS)},
    everywhere=True,
)
