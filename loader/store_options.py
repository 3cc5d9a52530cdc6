"""What the environment says of a store, as options of obstore.

Owns: the names, KServe's storage secrets' included (obstore reads the platforms' own by
itself), and the time limits of a connection. Must not: connect, or keep a credential.
"""

import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import ClientConfig


def s3_config(environ: Mapping[str, str]) -> dict[str, str]:
    """S3 settings from the names KServe's storage secrets use (facts: kserve 1.5).

    AWS_* names are read by obstore itself; these are the others.
    """
    config: dict[str, str] = {}
    endpoint = environ.get("AWS_ENDPOINT_URL") or environ.get("S3_ENDPOINT", "")
    if endpoint:
        if "://" not in endpoint:
            secure = environ.get("S3_USE_HTTPS", "1").lower() not in ("0", "false")
            endpoint = f"{'https' if secure else 'http'}://{endpoint}"
        config["endpoint"] = endpoint
    virtual = environ.get("S3_USER_VIRTUAL_BUCKET", "")  # sic: KServe's own spelling
    if virtual:
        config["virtual_hosted_style_request"] = str(_true(virtual)).lower()
    if unsigned(environ):
        config["skip_signature"] = "true"
    if "AWS_REGION" not in environ and "AWS_DEFAULT_REGION" not in environ:
        config["region"] = "us-east-1"
    return config


def unsigned(environ: Mapping[str, str]) -> bool:
    """Requests go without a signature; to make one, keys would be looked for."""
    names = ("awsAnonymousCredential", "AWS_SKIP_SIGNATURE")
    return any(_true(environ.get(name, "")) for name in names)


def client_options(environ: Mapping[str, str]) -> "ClientConfig":
    """Time limits, and what a secret says about TLS."""
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=10),
        # Plain http only where the operator's own endpoint says so.
        "allow_http": any(
            environ.get(name, "").startswith("http://")
            for name in ("AWS_ENDPOINT_URL", "S3_ENDPOINT")
        )
        or not _true(environ.get("S3_USE_HTTPS", "1")),
    }
    if "S3_VERIFY_SSL" in environ and not _true(environ["S3_VERIFY_SSL"]):
        options["allow_invalid_certificates"] = True
    bundle = environ.get("AWS_CA_BUNDLE", "")
    if bundle:
        options["root_certificate"] = Path(bundle).read_bytes()
    return options


def tls(environ: Mapping[str, str]) -> ssl.SSLContext:
    """The same, for connections of our own (loader/tap.py)."""
    context = ssl.create_default_context()
    bundle = environ.get("AWS_CA_BUNDLE", "")
    if bundle:
        context.load_verify_locations(bundle)
    if "S3_VERIFY_SSL" in environ and not _true(environ["S3_VERIFY_SSL"]):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _true(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")
