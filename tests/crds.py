"""Custom resource definitions as closed JSON Schemas: what a strict API server refuses.

A definition's OpenAPI schema lets unknown fields through, because the API server only
prunes them, silently. Here every object is closed: a misspelt field is an error.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Schema = dict[str, Any]

TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}

#: What we write of ObjectMeta, which a definition leaves open ("type: object").
OBJECT_META: Schema = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
    },
}


class StrictLoader(yaml.CSafeLoader):
    """A repeated key is an error; YAML libraries let the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is written twice{node.start_mark}")
        return super().construct_mapping(node, deep=deep)


def documents(text: str) -> list[Any]:
    """The documents of a YAML text."""
    return [d for d in yaml.load_all(text, StrictLoader) if d is not None]


def _unique(
    validator: Any, keys: list[str], items: Any, schema: Schema
) -> Iterator[jsonschema.ValidationError]:
    """`x-kubernetes-list-map-keys`: no two items with the same key."""
    defaults = {key: schema["items"]["properties"][key].get("default") for key in keys}
    found = [tuple(item.get(k, defaults[k]) for k in keys) for item in items]
    for key in {key for key in found if found.count(key) > 1}:
        yield jsonschema.ValidationError(f"{key} is there twice")


StrictValidator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"x-kubernetes-list-map-keys": _unique}
)


def closed(schema: Mapping[str, Any]) -> Schema:
    """The same schema with every object closed and the x-kubernetes words obeyed."""
    found = dict(schema)
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        return found
    if isinstance(found.get("items"), Mapping):
        found["items"] = closed(found["items"])
    if isinstance(found.get("additionalProperties"), Mapping):
        found["additionalProperties"] = closed(found["additionalProperties"])
    found |= {
        "properties": {k: closed(v) for k, v in found.get("properties", {}).items()}
    }
    if found.get("type") == "object" and not found.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        found.setdefault("additionalProperties", False)
    if found.get("nullable"):
        found["type"] = [found["type"], "null"]
    return found


def _schema(definition: Mapping[str, Any], version: str) -> Schema:
    for served in definition["spec"]["versions"]:
        if served["name"] == version and served["served"]:
            schema = closed(served["schema"]["openAPIV3Schema"])
            meta = dict(OBJECT_META)
            namespaced = definition["spec"]["scope"] == "Namespaced"
            if not namespaced:
                meta["properties"] = {
                    k: v for k, v in meta["properties"].items() if k != "namespace"
                }
            schema["properties"]["metadata"] = meta
            schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
            return schema
    raise LookupError(f"no version {version} of {definition['metadata']['name']}")


@cache
def validator(folder: Path, api_version: str, kind: str) -> Any:
    """The strict validator of a kind, from the definitions under `folder`."""
    group, _, version = api_version.partition("/")
    for path in sorted(folder.glob(f"*/{group}_*.yaml")):
        (definition,) = documents(path.read_text())
        if definition["spec"]["names"]["kind"] == kind:
            return StrictValidator(_schema(definition, version))
    raise LookupError(f"no definition of {api_version} {kind}")


def errors(folder: Path, document: Mapping[str, Any]) -> list[str]:
    """What a strict API server would say against a document; empty: nothing."""
    strict = validator(folder, document["apiVersion"], document["kind"])
    found = strict.iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]
