"""The server that one would write oneself: bench/peers/servers/diy_server.py.

`diy` reads what torch.save wrote, as most do; `diy-safetensors` maps hotset's files.
"""

from bench.peers.contender import Contender


def diy(form: str, budget: int, device: str = "cpu") -> Contender:
    """With room for so many bytes of weights."""
    return Contender(
        "diy" if form == "torch" else f"diy-{form}",
        "do it yourself" if form == "torch" else f"do it yourself, {form}",
        lambda site: [
            *(site.python, "-m", "bench.peers.servers.diy_server", "--form", form),
            *("--port", str(site.grpc_port), "--folder", str(site.models)),
            *("--budget", str(budget), "--device", device),
        ],
    )
