"""Settings: every knob of the server, once, with its unit, default and meaning.

Owns: names, defaults and help. Must not: act on any of them, know how a value is
written (runtime/notation.py), or where it came from (runtime/sources.py). The flags of
`serve` are made from the fields here (runtime/commands/serve.py), so that a setting is
one field and nothing else.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from eviction.policies import DEFAULT, POLICIES
from runtime import logs
from runtime.budget import Budget
from runtime.notation import (
    Bytes,
    BytesOrAuto,
    Device,
    Interval,
    PolicyName,
    Port,
    Seconds,
    Shares,
    Size,
)
from runtime.secrets import HIDDEN, Mask, names_a_secret
from runtime.tenants import Tenants

PREFIX = "HOTSET_"

Frontend = Literal["grpcio", "envoy", "zttp"]
"""Who answers callers (docs/decisions/0014-which-front-end.md)."""


class Settings(BaseSettings):
    """What the server is told. `title`: the placeholder that --help shows."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=PREFIX,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    store: str = Field(
        "",
        title="URL",
        description="Where the models are: a folder, s3://bucket/prefix, gs://..., "
        "az://... or memory://. Credentials come from the environment. Required.",
    )
    host: str = Field(
        "127.0.0.1",
        title="ADDRESS",
        description="Address to listen on, gRPC and HTTP. 0.0.0.0 for all; there is no "
        "authentication, so give that to a network you trust. Default: 127.0.0.1.",
    )
    grpc_port: Port = Field(
        8081, title="PORT", description="gRPC port; 0 takes a free one. Default: 8081."
    )
    http_port: Port = Field(
        8080,
        title="PORT",
        description="Port of health, /metrics and /hotset/status; 0 takes a free one. "
        "Default: 8080.",
    )
    frontend: Frontend = Field(
        "grpcio",
        title="NAME",
        description="What callers talk to: grpcio (everywhere); zttp: HTTP/2 on the "
        "engine's own event loop, most requests per core and the quickest answers, by "
        "a young library (pip install 'hotset[zttp]'); or envoy: the server runs in "
        "Envoy, which has TLS, tokens and rate limits, and both ports speak gRPC and "
        "HTTP (pip install 'hotset[envoy]'). Default: grpcio.",
    )
    envoy_config: str = Field(
        "",
        title="FILE",
        description="Envoy's own configuration (TLS, tokens, rate limits, access log: "
        "docs/envoy.md) in place of the built-in one, with --frontend envoy; the ports "
        "are then what it says. Default: built in.",
    )
    server_name: str = Field(
        "hotset",
        min_length=1,
        max_length=128,
        title="NAME",
        description="Name that ServerMetadata tells. Default: hotset.",
    )
    device: Device = Field(
        "auto",
        title="DEVICE",
        description="auto, cpu, or cuda:N. auto is cuda:0 where there is one, else "
        "cpu. Default: auto.",
    )
    budget: Size = Field(
        Budget(),
        title="SIZE",
        description="Most that models may hold on the device: a share ('80%') or bytes "
        "('4GiB'). Never more than is really free. Default: 80%.",
    )
    reserve: BytesOrAuto = Field(
        None,
        ge=0,
        title="SIZE",
        description="Bytes kept free for activations ('512MiB'); auto takes 5 % of the "
        "device within sensible bounds. Default: auto.",
    )
    policy: PolicyName = Field(
        DEFAULT,
        title="NAME",
        description=f"Who leaves when room is needed: {', '.join(POLICIES)}. "
        f"Default: {DEFAULT}.",
    )
    patience: Seconds = Field(
        30.0,
        title="SECONDS",
        description="How long a request without a deadline waits for room, in seconds. "
        "Default: 30.",
    )
    idle_ttl: Seconds = Field(
        0.0,
        title="SECONDS",
        description="Models that nobody has used for so long leave even if there is "
        "room, in seconds; pinned ones stay. 0 is off. Default: 0.",
    )
    anti_thrash: bool = Field(
        True,
        description="When models are wanted back as soon as they leave, let who came "
        "stay for a while and tell the coldest newcomers when to come again. "
        "Default: on.",
    )
    tenant_shares: Shares = Field(
        Tenants(),
        title="SHARES",
        description="What of the budget each tenant has, as "
        "NAME=FLOOR:QUOTA:CEILING,... in bytes or shares ('a=1GiB:2GiB:4GiB,b=10%'): "
        "others do not push it below FLOOR, above QUOTA it makes room first, above "
        "CEILING it never gets. In TOML a table. Default: none.",
    )
    max_waiting: int = Field(
        16384,
        ge=1,
        title="COUNT",
        description="Requests that may wait for models at a time; more are refused. "
        "Default: 16384.",
    )
    concurrent_loads: int = Field(
        4,
        ge=1,
        le=256,
        title="COUNT",
        description="Loads at a time. On a GPU as many threads, or eight on large "
        "machines, have 16 MiB of locked host memory each. Default: 4.",
    )
    loader: Literal["auto", "threads", "process"] = Field(
        "auto",
        title="MODE",
        description="Where weights are read and verified: in threads of the engine, or "
        "in a process of its own, which takes 40 MB and keeps loads from slowing "
        "answers (Linux, --device cpu, any store but memory://). auto: a process after "
        "16 loads of 1 MiB or more, where there is more than one core. Default: auto.",
    )
    load_timeout: Interval = Field(
        120.0,
        title="SECONDS",
        description="Longest that one load may take, in seconds. Default: 120.",
    )
    lanes: int = Field(
        0,
        ge=0,
        le=256,
        title="COUNT",
        description="Threads that run models; 0 chooses by cores and device. "
        "Default: 0.",
    )
    batching: bool = Field(
        True,
        description="Run requests that wait for one model as one call, up to the "
        "model's max_batch_size. Default: on.",
    )
    cross_batching: bool = Field(
        True,
        description="Run requests for several models of one graph as one call, where a "
        "measurement at first use shows that it pays. Default: on.",
    )
    max_queue_delay: Seconds = Field(
        0.0,
        title="SECONDS",
        description="How long a request may wait for others of its model to share its "
        "call, in seconds ('0.002'). With 0 it shares it with those that come in the "
        "same turn of the event loop, and waits for nobody. Default: 0.",
    )
    cuda_graphs: Literal["off", "auto"] = Field(
        "auto",
        title="MODE",
        description="On a GPU. auto: calls that come again and again are recorded as "
        "CUDA graphs where that is measured to be quicker, one for all models of a "
        "graph. Weights, inputs and outputs take a quarter of --reserve at most. "
        "Default: auto.",
    )
    kernels: Literal["auto", "torch"] = Field(
        "auto",
        title="MODE",
        description="On a CPU: which library computes large linear layers. auto: a "
        "short measurement at the start chooses between oneDNN and what torch would "
        "use (MKL on x86); oneDNN is often faster on AMD processors, and results then "
        "differ by rounding only. torch: always what torch would use. Default: auto.",
    )
    compile: Literal["off", "auto"] = Field(
        "off",
        title="MODE",
        description="auto: compile the graphs that cost most, one at a time, in a "
        "process of its own behind the requests; each serves all models of its graph, "
        "once its answers agree. Needs a C++ compiler and --device cpu. Default: off.",
    )
    compile_after: Seconds = Field(
        10.0,
        title="SECONDS",
        description="What a graph must have cost, in seconds of forward passes, before "
        "it is compiled (which takes about 30 seconds of a core). Default: 10.",
    )
    compile_cache: str = Field(
        "",
        title="DIR",
        description="Folder that keeps compiled graphs over a restart. It holds "
        "machine code that the server runs: it must be its own user's, with mode 700. "
        "Empty: kept for the life of the process. Default: empty.",
    )
    frontends: int = Field(
        0,
        ge=0,
        le=64,
        title="COUNT",
        description="Processes that answer callers, beside one that has the device and "
        "the models and is replaced when it is lost. 0: one process does it all. "
        "Default: 0.",
    )
    predict_timeout: Interval = Field(
        30.0,
        title="SECONDS",
        description="With --frontends: a forward that runs for so long, or an engine "
        "that does not stir for so long (in seconds), is hung: it is replaced. "
        "Default: 30.",
    )
    pin: bool = Field(
        False,
        description="With --frontends: a core for each front end, all others for the "
        "engine, where there are enough. Default: off.",
    )
    max_graphs: int = Field(
        256,
        ge=1,
        title="COUNT",
        description="Graphs kept ready; models of one architecture share one. "
        "Default: 256.",
    )
    max_message: Bytes = Field(
        64 << 20,
        ge=4096,
        le=2**31 - 1,
        title="SIZE",
        description="Largest gRPC message, in bytes ('64MiB'). Default: 64MiB.",
    )
    host_cache: Bytes = Field(
        0,
        title="SIZE",
        description="Host memory that keeps evicted models, pinned if there is a GPU: "
        "they come back by one copy ('16GiB'). 0 is off; with --device cpu the models "
        "are in host memory already. Default: 0.",
    )
    disk_cache: str = Field(
        "",
        title="DIR",
        description="Folder that keeps files of the store on a local disk; servers may "
        "share it. Empty is off. Default: off.",
    )
    disk_cache_size: Bytes = Field(
        10 << 30,
        title="SIZE",
        description="Most that the folder of --disk-cache may hold. Default: 10GiB.",
    )
    prewarm: str = Field(
        "",
        title="NAMES|FILE",
        description="Models to load at start, as far as there is room: names with "
        "commas between, or a file with one a line (say ./hot.txt: anything with a "
        "'/'), which is written anew when the server drains. Default: none.",
    )
    prefetch: Bytes = Field(
        0,
        title="SIZE",
        description="Host memory for models that are thought to be asked for next "
        "('512MiB'): those that follow others, or come at regular times. It is worth "
        "it for pipelines and timed jobs, and not for traffic without such order: see "
        "hotset_prefetch_* in the metrics. 0 is off. Default: 0.",
    )
    history: str = Field(
        "",
        title="FILE",
        description="File that keeps what the policy has learnt over a restart; "
        "written every five minutes and when the server drains. Empty is off. "
        "Default: off.",
    )
    access_log: str = Field(
        "",
        title="FILE",
        description="File that gets a line of CSV for every request: what `hotset "
        "simulate` and `hotset plan` read. Empty is off. Default: off.",
    )
    access_log_size: Bytes = Field(
        64 << 20,
        title="SIZE",
        description="From this size on the file of --access-log becomes FILE.1, in "
        "the place of an older one ('64MiB'). Default: 64MiB.",
    )
    catalog_ttl: Seconds = Field(
        30.0,
        title="SECONDS",
        description="How long a manifest is believed before the store is asked again, "
        "in seconds. Default: 30.",
    )
    unknown_ttl: Seconds = Field(
        5.0,
        title="SECONDS",
        description="How long an unknown name is remembered as unknown, in seconds. "
        "Default: 5.",
    )
    gauge_interval: Interval = Field(
        1.0,
        title="SECONDS",
        description="Time between two readings of the device's memory, in seconds. "
        "Default: 1.",
    )
    grace: Seconds = Field(
        30.0,
        title="SECONDS",
        description="How long requests in flight may take to end after SIGTERM, in "
        "seconds. Default: 30.",
    )
    metrics_top: int = Field(
        50,
        ge=0,
        le=1000,
        title="COUNT",
        description="Models with a label of their own in the metrics, by traffic; the "
        "rest is _other. Default: 50.",
    )
    log_format: logs.Format = Field(
        "auto",
        title="FORMAT",
        description="json, console, or auto: console on a terminal, else json. "
        "Default: auto.",
    )
    log_level: logs.Level = Field(
        "info",
        title="LEVEL",
        description="debug, info, warning or error. Default: info.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor is given: `load` puts the sources in order."""
        return (init_settings,)

    def shown(self) -> dict[str, str]:
        """Every setting that has a value, as text without credentials."""
        mask = Mask()
        return {
            name: HIDDEN if names_a_secret(name) else mask(str(value))
            for name, value in self
            if value is not None
        }

    def __repr_args__(self) -> Iterator[tuple[str, str]]:
        yield from self.shown().items()
