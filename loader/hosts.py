"""Which hosts the store's client may talk to: a redirect leads to no other.

Owns: the fence, and the hosts that each kind of store needs, its credentials' included.
Must not: connect to any of them.

obstore follows redirects and has no option against it: a store, or whoever can answer
in its place, could make the server fetch any URL it reaches (the cloud's metadata
service, say). The way out is its proxy option: everything but the hosts listed goes
through a proxy that cannot exist (nothing listens on port 0), so it fails before a
byte is sent. Another port of a listed host is let through.

Where the operator has set a proxy of his own (HTTPS_PROXY and its kin) there is no
fence: the way out is his, and so are its rules.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import ClientConfig

NOWHERE = "http://127.0.0.1:0"

METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254",
            "fd00:ec2::23", "metadata.google.internal", "metadata")  # fmt: skip
"""Where clouds hand out credentials; listed only when there are no others."""

HOSTS: Mapping[str, tuple[str, ...]] = {
    "s3": ("amazonaws.com", "amazonaws.com.cn"),
    "gs": ("googleapis.com", "accounts.google.com"),
    "az": (
        "windows.net", "azure.com", "fabric.microsoft.com", "microsoftonline.com",
        "chinacloudapi.cn", "partner.microsoftonline.cn", "usgovcloudapi.net",
        "microsoftonline.us",
    ),
}  # fmt: skip
"""A name stands for its subdomains too."""

ENDPOINTS: Mapping[str, tuple[str, ...]] = {
    "s3": (
        "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "S3_ENDPOINT",
        "AWS_ENDPOINT_URL_STS", "AWS_STS_ENDPOINT", "AWS_METADATA_ENDPOINT",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "gs": (
        "GOOGLE_BASE_URL", "GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP",
    ),
    "az": (
        "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "AZURITE_BLOB_STORAGE_URL",
        "AZURE_AUTHORITY_HOST", "AZURE_STORAGE_AUTHORITY_HOST", "IDENTITY_ENDPOINT",
        "AZURE_MSI_ENDPOINT", "AZURE_FABRIC_TOKEN_SERVICE_URL",
        "AZURE_FABRIC_WORKLOAD_HOST",
    ),
}  # fmt: skip
"""Variables whose value is a URL, or host[:port], that the client may be sent to."""

OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "s3": ("AWS_ACCESS_KEY_ID", "awsAnonymousCredential", "AWS_SKIP_SIGNATURE"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT",
           "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY",
           "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_SECRET"),
}  # fmt: skip
"""With one of these set nobody asks a metadata service."""


def fence(scheme: str, environ: Mapping[str, str]) -> "ClientConfig":
    """Client options under which nothing but the store's own hosts can be reached."""
    if any(environ.get(name) for name in _proxies()):
        return {}
    return {"proxy_url": NOWHERE, "proxy_excludes": ",".join(hosts(scheme, environ))}


def hosts(scheme: str, environ: Mapping[str, str]) -> list[str]:
    """The hosts a store of this scheme needs, in this environment."""
    kind = {"s3a": "s3", "gs": "gs", "s3": "s3"}.get(scheme, "az")
    told = [environ.get(name, "") for name in ENDPOINTS[kind]]
    found = [host for host in map(host_of, told) if host]
    # An endpoint of one's own stands in the place of the cloud's.
    own = kind == "s3" and bool(host_of(told[0] or told[1] or told[2] or told[3]))
    if not own:
        found += HOSTS[kind]
    if not any(environ.get(name) for name in OWN_KEYS[kind]):
        found += METADATA
        if own:
            found += HOSTS[kind]  # STS gives the keys, whoever keeps the objects
    return list(dict.fromkeys(found))


def host_of(address: str) -> str:
    """The host of a URL or of `host:port`; '' if there is none."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
    except ValueError:
        return ""
    return parts.hostname or ""


def _proxies() -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        yield name
        yield name.upper()
