"""The files in kserve/: schema-valid, and right where no schema can tell."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from runtime.config import PREFIX, Settings
from tests import crds

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "kserve"
CRDS = ROOT.parent / "shared" / "crds"
MANIFESTS = sorted(FOLDER.glob("**/*.yaml"))

Document = dict[str, Any]
Change = Callable[[Document], object]

needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason="needs ../shared/crds, which is not part of the project"
)


def read(name: str) -> Document:
    (document,) = crds.documents((FOLDER / name).read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture
def runtime() -> Document:
    return read("clusterservingruntime.yaml")


@pytest.fixture
def isvc() -> Document:
    return read("inferenceservice.yaml")


@pytest.fixture
def initializer() -> Document:
    return read("clusterstoragecontainer.yaml")


def container_of(runtime: Document) -> Document:
    (container,) = runtime["spec"]["containers"]
    assert isinstance(container, dict)
    return container


# Against the schemas


def test_there_are_manifests() -> None:
    assert {path.name for path in MANIFESTS} >= {
        "clusterservingruntime.yaml",
        "clusterstoragecontainer.yaml",
        "inferenceservice.yaml",
    }
    assert not list(FOLDER.glob("**/*.py")), "kserve/ must not become a package"


@needs_crds
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_strict_api_server_takes_every_manifest(path: Path) -> None:
    for document in crds.documents(path.read_text()):
        assert crds.errors(CRDS, document) == []


def at(document: Any, *keys: str | int) -> Any:
    for key in keys:
        document = document[key]
    return document


SCHEMA_MISTAKES: dict[str, tuple[str, Change, str]] = {
    "a pod field that runtimes do not have": (
        "clusterservingruntime.yaml",
        lambda d: at(d, "spec").update(terminationGracePeriodSeconds=60),
        r"\$\.spec: .*'terminationGracePeriodSeconds' was unexpected",
    ),
    "a misspelt field deep inside": (
        "clusterservingruntime.yaml",
        lambda d: at(d, "spec", "containers", 0, "readinessProbe", "httpGet").update(
            prot=1
        ),
        r"readinessProbe\.httpGet: .*'prot' was unexpected",
    ),
    "a number where text belongs": (
        "clusterservingruntime.yaml",
        lambda d: at(d, "spec", "annotations").update({"prometheus.io/port": 8080}),
        r"8080 is not of type 'string'",
    ),
    "text where a number belongs": (
        "clusterservingruntime.yaml",
        lambda d: at(d, "spec", "containers", 0, "ports", 0).update(
            containerPort="8080"
        ),
        r"'8080' is not of type 'integer'",
    ),
    "a quantity that is none": (
        "clusterservingruntime.yaml",
        lambda d: at(d, "spec", "containers", 0, "resources", "limits").update(
            memory="8 gigs"
        ),
        r"'8 gigs' does not match",
    ),
    "neither number nor text": (
        "clusterservingruntime.yaml",
        lambda d: at(d, "spec", "containers", 0, "livenessProbe", "httpGet").update(
            port=1.5
        ),
        r"1\.5 is not valid under any",
    ),
    "one port twice": (
        "clusterservingruntime.yaml",
        lambda d: at(d, "spec", "containers", 0, "ports").append(
            {"name": "again", "containerPort": 8080}
        ),
        r"\(8080, 'TCP'\) is there twice",
    ),
    "a namespace on a cluster's own": (
        "clusterservingruntime.yaml",
        lambda d: at(d, "metadata").update(namespace="models"),
        r"\$\.metadata: .*'namespace' was unexpected",
    ),
    "annotations in the wrong place": (
        "inferenceservice.yaml",
        lambda d: at(d, "spec").update(annotations={}),
        r"\$\.spec: .*'annotations' was unexpected",
    ),
    "a misspelt annotation holder": (
        "inferenceservice.yaml",
        lambda d: at(d, "metadata").update(annotation={}),
        r"\$\.metadata: .*'annotation' was unexpected",
    ),
    "a field of another spelling": (
        "inferenceservice.yaml",
        lambda d: at(d, "spec", "predictor", "model").update(storageURI="s3://x"),
        r"predictor\.model: .*'storageURI' was unexpected",
    ),
    "a required field left out": (
        "inferenceservice.yaml",
        lambda d: at(
            d, "spec", "predictor", "model", "env", 3, "valueFrom", "secretKeyRef"
        ).pop("key"),
        r"'key' is a required property",
    ),
    "one variable twice": (
        "inferenceservice.yaml",
        lambda d: at(d, "spec", "predictor", "model", "env").append(
            {"name": "HOTSET_STORE", "value": "s3://other"}
        ),
        r"\('HOTSET_STORE',\) is there twice",
    ),
    "no name": (
        "inferenceservice.yaml",
        lambda d: at(d, "metadata").pop("name"),
        r"'name' is a required property",
    ),
    "a word that is not one of the choices": (
        "clusterstoragecontainer.yaml",
        lambda d: at(d, "spec").update(workloadType=["initContainer"]),
        r"is not of type 'string'",
    ),
}


@needs_crds
@pytest.mark.parametrize("mistake", SCHEMA_MISTAKES)
def test_the_schema_check_refuses(mistake: str) -> None:
    name, change, says = SCHEMA_MISTAKES[mistake]
    document = read(name)
    change(document)
    found = crds.errors(CRDS, document)
    assert re.search(says, "\n".join(found)), found


@needs_crds
def test_what_may_hold_anything_stays_open() -> None:
    schema = crds.closed(
        {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    )
    assert not list(crds.StrictValidator(schema).iter_errors({"any": "thing"}))
    schema = crds.closed({"type": "object", "nullable": True})
    assert not list(crds.StrictValidator(schema).iter_errors(None))
    with pytest.raises(LookupError, match="no definition of example/v1 Thing"):
        crds.validator(CRDS, "example/v1", "Thing")
    with pytest.raises(LookupError, match="no version v9"):
        crds.validator(CRDS, "serving.kserve.io/v9", "InferenceService")


def test_a_key_written_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="'a' is written twice"):
        crds.documents("a: 1\nb: {c: 1}\na: 2\n")


# What no schema can tell (docs/kserve.md, "What goes wrong")


def flags(container: Document) -> dict[str, str]:
    """--http-port=8080 -> {"http_port": "8080"}"""
    command, *rest = container["args"]
    assert command == "serve"
    pairs = [arg.removeprefix("--").split("=", 1) for arg in rest]
    return {name.replace("-", "_"): value for name, value in pairs}


def variables(*containers: Document) -> dict[str, Document]:
    return {env["name"]: env for c in containers for env in c.get("env", [])}


def runtime_faults(runtime: Document) -> list[str]:
    spec, container = runtime["spec"], container_of(runtime)
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    names = list(ports)
    told = flags(container)
    guard = container["securityContext"]
    mounts = [m["name"] for m in container["volumeMounts"]]
    grpc_on = [n for n in names if "grpc" in n or "h2c" in n]
    rules = {
        "Standard mode does not select a ModelMesh runtime": not spec.get("multiModel"),
        "storage and probes go to kserve-container only": container["name"]
        == "kserve-container",
        "the first port is Service port 80 and must be HTTP": names[0] == "http1",
        "one port must be known as gRPC": grpc_on == ["grpc"],
        "the ports are those hotset listens on": ports
        == {"http1": int(told["http_port"]), "grpc": int(told["grpc_port"])},
        "a server on loopback is reached by nobody": told["host"] == "0.0.0.0",
        "probes need a port that is there": all(
            container[probe]["httpGet"]["port"] in ports
            for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        ),
        "only readiness may fail while draining": container["livenessProbe"]["httpGet"][
            "path"
        ]
        == "/v2/health/live"
        and container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready",
        "metrics are on the HTTP port": spec["annotations"]["prometheus.io/port"]
        == told["http_port"],
        "scraping by KServe's annotation goes to 9091": not any(
            "enable-prometheus-scraping" in key for key in spec["annotations"]
        ),
        "a GPU cannot be shared by request": container["resources"]["limits"][
            "nvidia.com/gpu"
        ]
        == container["resources"]["requests"]["nvidia.com/gpu"],
        "the container is locked down": guard["runAsNonRoot"]
        and guard["readOnlyRootFilesystem"]
        and not guard["allowPrivilegeEscalation"]
        and guard["capabilities"] == {"drop": ["ALL"]},
        "every mount has its volume": set(mounts)
        == {v["name"] for v in spec["volumes"]},
        "braces are KServe's template": "{{" not in json.dumps(container),
        "KServe refuses or rewrites these names": not variables(container).keys()
        & {"PYTHONPATH", "STORAGE_URI"},
    }
    return [reason for reason, holds in rules.items() if not holds]


def pair_faults(runtime: Document, initializer: Document, isvc: Document) -> list[str]:
    container, predictor = container_of(runtime), isvc["spec"]["predictor"]
    model, notes = predictor["model"], isvc["metadata"]["annotations"]
    env = variables(model)
    formats = [
        (f["name"], f["version"]) for f in runtime["spec"]["supportedModelFormats"]
    ]
    drain = int(flags(container)["grace"]) + at(
        container, "lifecycle", "preStop", "sleep", "seconds"
    )
    (uri_format,) = initializer["spec"]["supportedUriFormats"]
    store = env["HOTSET_STORE"]["value"]
    rules = {
        "the mode must be said": notes["serving.kserve.io/deploymentMode"]
        == "Standard",
        "the runtime is named": model["runtime"] == runtime["metadata"]["name"],
        "the format is one the runtime has": (
            model["modelFormat"]["name"],
            model["modelFormat"]["version"],
        )
        in formats,
        "without protocolVersion KServe looks for v1": model.get("protocolVersion")
        in runtime["spec"]["protocolVersions"],
        "without storageUri a sidecar is injected": "storageUri" in model,
        "the store itself must not be downloaded": model.get("storageUri")
        == uri_format["prefix"] + store,
        "a pod killed while draining loses requests": predictor[
            "terminationGracePeriodSeconds"
        ]
        > drain,
        "a surge pod would wait for a GPU forever": at(
            predictor, "deploymentStrategy", "rollingUpdate", "maxSurge"
        )
        == 0,
        "service links write HOTSET_* of their own": predictor["enableServiceLinks"]
        is False,
        "KServe refuses or rewrites these names": not env.keys()
        & {"PYTHONPATH", "STORAGE_URI"},
        "secrets come by reference": not any(
            "value" in e for name, e in env.items() if "KEY" in name or "TOKEN" in name
        ),
        "the initializer does nothing": initializer["spec"]["container"]["command"]
        == ["true"],
        "the initializer's name": initializer["spec"]["container"]["name"]
        == "storage-initializer",
        "the initializer is nothing more to pull": initializer["spec"]["container"][
            "image"
        ]
        == container["image"],
    }
    return [reason for reason, holds in rules.items() if not holds]


def test_the_manifests_avoid_the_mistakes_no_schema_knows(
    runtime: Document, initializer: Document, isvc: Document
) -> None:
    assert runtime_faults(runtime) == []
    assert pair_faults(runtime, initializer, isvc) == []


def replace_arg(old: str, new: str) -> Change:
    def change(runtime: Document) -> None:
        args = container_of(runtime)["args"]
        args[args.index(old)] = new

    return change


RUNTIME_MISTAKES: dict[str, Change] = {
    "ModelMesh": lambda d: d["spec"].update(multiModel=True),
    "kserve-container": lambda d: container_of(d).update(name="hotset"),
    "Service port 80": lambda d: container_of(d)["ports"].reverse(),
    "known as gRPC": lambda d: container_of(d)["ports"][1].update(name="http2"),
    "listens on": replace_arg("--grpc-port=8081", "--grpc-port=9000"),
    "loopback": replace_arg("--host=0.0.0.0", "--host=127.0.0.1"),
    "need a port": lambda d: container_of(d)["startupProbe"]["httpGet"].update(
        port="x"
    ),
    "while draining": lambda d: container_of(d)["livenessProbe"]["httpGet"].update(
        path="/v2/health/ready"
    ),
    "on the HTTP port": lambda d: d["spec"]["annotations"].update(
        {"prometheus.io/port": "9091"}
    ),
    "goes to 9091": lambda d: d["spec"]["annotations"].update(
        {"serving.kserve.io/enable-prometheus-scraping": "true"}
    ),
    "GPU cannot be shared": lambda d: container_of(d)["resources"]["requests"].update(
        {"nvidia.com/gpu": "0"}
    ),
    "locked down": lambda d: container_of(d)["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "has its volume": lambda d: d["spec"].update(volumes=[]),
    "braces": lambda d: container_of(d)["args"].append("--log-format={{level}}"),
    "rewrites these names": lambda d: container_of(d).update(
        env=[{"name": "PYTHONPATH", "value": "/x"}]
    ),
}


@pytest.mark.parametrize("mistake", RUNTIME_MISTAKES)
def test_the_rules_catch_a_mistake_in_the_runtime(
    mistake: str, runtime: Document
) -> None:
    RUNTIME_MISTAKES[mistake](runtime)
    assert any(mistake in fault for fault in runtime_faults(runtime))


def predictor_of(isvc: Document) -> Document:
    found = isvc["spec"]["predictor"]
    assert isinstance(found, dict)
    return found


PAIR_MISTAKES: dict[str, Change] = {
    "mode must be said": lambda d: d["metadata"]["annotations"].update(
        {"serving.kserve.io/deploymentMode": "Knative"}
    ),
    "runtime is named": lambda d: predictor_of(d)["model"].update(runtime="mlserver"),
    "format is one": lambda d: predictor_of(d)["model"]["modelFormat"].update(
        version="2"
    ),
    "looks for v1": lambda d: predictor_of(d)["model"].pop("protocolVersion"),
    "sidecar is injected": lambda d: predictor_of(d)["model"].pop("storageUri"),
    "must not be downloaded": lambda d: predictor_of(d)["model"].update(
        storageUri="s3://models/prod"
    ),
    "killed while draining": lambda d: predictor_of(d).update(
        terminationGracePeriodSeconds=35
    ),
    "surge pod": lambda d: at(
        d, "spec", "predictor", "deploymentStrategy", "rollingUpdate"
    ).update(maxSurge="25%"),
    "service links": lambda d: predictor_of(d).update(enableServiceLinks=True),
    "rewrites these names": lambda d: predictor_of(d)["model"]["env"].append(
        {"name": "STORAGE_URI", "value": "s3://models/prod"}
    ),
    "secrets come by reference": lambda d: predictor_of(d)["model"]["env"].append(
        {"name": "AZURE_STORAGE_ACCESS_KEY", "value": "secret"}
    ),
}


@pytest.mark.parametrize("mistake", PAIR_MISTAKES)
def test_the_rules_catch_a_mistake_in_the_service(
    mistake: str, runtime: Document, initializer: Document, isvc: Document
) -> None:
    PAIR_MISTAKES[mistake](isvc)
    faults = pair_faults(runtime, initializer, isvc)
    assert any(mistake in fault for fault in faults)


def test_the_rules_catch_an_initializer_that_works(
    runtime: Document, initializer: Document, isvc: Document
) -> None:
    busy = copy.deepcopy(initializer)
    busy["spec"]["container"] |= {"command": ["hotset"], "name": "x", "image": "y"}
    assert len(pair_faults(runtime, busy, isvc)) == 3


# The flags are hotset's own


def test_every_flag_and_variable_is_a_setting_of_hotset_with_a_value_it_takes(
    runtime: Document, isvc: Document
) -> None:
    told = flags(container_of(runtime))
    assert set(told) == {
        *("host", "http_port", "grpc_port", "device", "budget", "policy", "grace")
    }
    env = variables(container_of(runtime), isvc["spec"]["predictor"]["model"])
    ours = {name: env[name]["value"] for name in env if name.startswith(PREFIX)}
    assert sorted(ours) == ["HOTSET_FRONTEND", "HOTSET_STORE"]
    told |= {name.removeprefix(PREFIX).lower(): ours[name] for name in ours}
    settings = Settings.model_validate(told)
    assert settings.http_port == 8080
    assert settings.store == "s3://models/prod"
    with pytest.raises(ValidationError, match="budgets"):
        Settings.model_validate(told | {"budgets": "80%"})
