"""Envoy's configuration, as a value.

Owns: what Envoy does for us (HTTP/1.1 and HTTP/2, windows, floods, idle connections,
draining) and with which limits. Must not: hold a secret: it is on a command line.

One listener with two addresses: an instance of the application belongs to a filter
chain, and there must be one engine. So both ports speak both protocols.
"""

import json
from collections.abc import Mapping
from typing import Any

from runtime.limits import (
    ABSOLUTE_MAX_METADATA,
    CONNECTION_AGE_S,
    IDLE_S,
    KEEPALIVE_S,
    KEEPALIVE_TIMEOUT_S,
    PENDING_HARD,
)

Config = dict[str, Any]

APPLICATION = "runtime.envoy.app:app"
MODULE = LISTENER = "hotset"

HEAD_S = 10
"""Within which a request's head must be whole."""
CONNECTIONS = 50_000
"""Envoy's own advice for an edge; each costs some 30 KiB."""
WINDOW = 16 << 20
"""Bytes that a client may send unasked, on one stream and on one connection. A large
message comes in as many parts as it has windows, and each costs a way to Python."""
BUFFERED = 16 << 20
"""Bytes of a request or answer that Envoy keeps while nobody reads: not less than a
window, or what a busy loop has not read yet would be refused."""

RELEASED = 64 << 20
"""Bytes of free memory given back to the system in a second: Envoy's allocator, which
is Python's too in this process, keeps what a burst or a large message took."""

_TYPE = "type.googleapis.com/"
_HCM = (
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)


def bootstrap(
    host: str, grpc_port: int, http_port: int, reuse_port: bool = False
) -> Config:
    """The configuration that serves without one of the operator's. `reuse_port`: others
    listen there as well, on purpose."""
    listener = _listener(host, grpc_port, http_port)
    # By default it is on, and a second server would silently take half of the
    # connections.
    listener["enable_reuse_port"] = reuse_port
    return {
        "static_resources": {"listeners": [listener]},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPE}envoy.extensions.resource_monitors."
                        "downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": CONNECTIONS,
                    },
                }
            ]
        },
    }


def ours(admin: str, json_logs: bool) -> Config:
    """What goes on top of any configuration: how we steer Envoy, and how it logs."""
    log: Config = {"text_format": "%Y-%m-%dT%T.%f%z [%l] envoy.%n: %_"}
    if json_logs:
        record = {
            "timestamp": "%Y-%m-%dT%T.%f%z",
            "level": "%l",
            "event": "%j",
            "logger": "envoy.%n",
        }
        log = {"json_format": record}
    return {
        "admin": {"address": {"pipe": {"path": admin, "mode": 0o600}}},
        "application_log_config": {"log_format": log},
        "memory_allocator_manager": {
            "bytes_to_release": RELEASED,
            "memory_release_interval": "1s",
        },
    }


def _listener(host: str, grpc_port: int, http_port: int) -> Config:
    chain = {"filters": [{"name": "http", "typed_config": _http()}]}
    return {
        "name": LISTENER,
        "address": _address(host, grpc_port),
        "additional_addresses": [{"address": _address(host, http_port)}],
        "per_connection_buffer_limit_bytes": BUFFERED,
        "filter_chains": [chain],
    }


def _address(host: str, port: int) -> Config:
    return {"socket_address": {"address": host, "port_value": port}}


def _http() -> Config:
    return {
        "@type": _TYPE + _HCM,
        "stat_prefix": "hotset",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{"name": "hotset", "domains": ["*"]}]},
        "http_filters": [_python()],
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": True,
        "skip_xff_append": True,
        # More than we take (runtime/asgi/metadata.py): a refusal beats a reset.
        "max_request_headers_kb": 4 * ABSOLUTE_MAX_METADATA // 1024,
        "request_headers_timeout": f"{HEAD_S}s",
        # A stream may say nothing for hours, as health's Watch does.
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {
            "idle_timeout": f"{IDLE_S}s",
            "max_connection_duration": f"{CONNECTION_AGE_S}s",
        },
        "http2_protocol_options": _http2(),
    }


def _http2() -> Mapping[str, Any]:
    """Envoy's guards against floods stay on; two are raised to the burst we promise.

    An answer is three frames, and all of a burst may be answered at once.
    """
    return {
        "max_concurrent_streams": PENDING_HARD,
        "max_outbound_frames": 4 * PENDING_HARD,
        "initial_stream_window_size": WINDOW,
        "initial_connection_window_size": WINDOW,
        "connection_keepalive": {
            "interval": f"{KEEPALIVE_S}s",
            "timeout": f"{KEEPALIVE_TIMEOUT_S}s",
        },
    }


def _python() -> Config:
    """The filter that answers: Python inside Envoy."""
    return {
        "name": "hotset",
        "typed_config": {
            "@type": f"{_TYPE}envoy.extensions.filters.http.dynamic_modules.v3."
            "DynamicModuleFilter",
            # Found as libhotset.so in a folder of ours (runtime/envoy/launch.py).
            "dynamic_module_config": {"name": MODULE},
            "filter_name": "pyvoy",
            "terminal_filter": True,
            "filter_config": {
                "@type": f"{_TYPE}google.protobuf.StringValue",
                "value": json.dumps(
                    {"app": APPLICATION, "interface": "asgi", "lifespan": True}
                ),
            },
        },
    }
