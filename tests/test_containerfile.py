"""The Containerfile: no builder runs in the tests, so its structure is checked."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = ROOT / "kserve" / "Containerfile"


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) in order, continued lines joined, comments dropped."""
    lines = [x for x in text.splitlines() if not x.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [
        line.strip().partition(" ") for line in joined.splitlines() if line.strip()
    ]
    return [(word.upper(), rest.strip()) for word, _, rest in found]


WORDS = {"ARG", "FROM", "WORKDIR", "RUN", "ENV", "COPY", "LABEL", "USER", "EXPOSE"}


def image_faults(text: str) -> list[str]:
    steps = instructions(text)
    starts = [i for i, (word, _) in enumerate(steps) if word == "FROM"]
    if len(starts) != 2:
        return ["one stage builds, one runs"]
    build, final = steps[starts[0] : starts[1]], steps[starts[1] :]
    said = dict(final)
    installs = [rest for word, rest in build if word == "RUN" and " install " in rest]
    sources = [
        source
        for word, rest in steps
        if word == "COPY" and "--from" not in rest
        for source in shlex.split(rest)[:-1]
    ]
    ours = [i for i, (w, r) in enumerate(build) if w == "COPY" and "runtime" in r]
    torch = [i for i, (w, r) in enumerate(build) if r.endswith(" torch")]
    rules = {
        "only known instructions": {w for w, _ in steps}
        <= WORDS | {"ENTRYPOINT", "CMD"},
        "every version is pinned": all("-c constraints.txt" in r for r in installs)
        and len(installs) == 2,
        "torch comes first, before our code": len(torch) == len(ours) == 1
        and torch[0] < ours[0],
        "what is copied is in the repository": all(
            (ROOT / s).exists() for s in sources
        ),
        "the packages of the wheel are copied": {
            "eviction",
            "loader",
            "protos",
            "runtime",
        }
        <= set(sources),
        "a numeric user that is not root": re.fullmatch(
            r"[1-9]\d*:[1-9]\d*", said.get("USER", "")
        )
        is not None,
        "nothing runs as root after the user is set": [w for w, _ in final].index(
            "USER"
        )
        > max(i for i, (w, _) in enumerate(final) if w in ("RUN", "COPY")),
        "exec form, so that SIGTERM arrives": said.get("ENTRYPOINT") == '["hotset"]',
        "nothing is built or installed in the final image": not re.search(
            r"apt-get|apk |gcc|make |pip install|build-essential",
            " ".join(rest for _, rest in final),
        ),
        "no context is copied whole": "." not in sources,
        "NVML needs the utility capability": "CAPABILITIES=compute,utility"
        in said["ENV"],
        "the ports are the runtime's": said["EXPOSE"].split() == ["8080", "8081"],
        "KServe refuses PYTHONPATH": "PYTHONPATH" not in text,
    }
    return [reason for reason, holds in rules.items() if not holds]


def test_the_containerfile_is_built_as_it_should_be() -> None:
    assert image_faults(FILE.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("USER 10001:10001", "USER hotset", "numeric user"),
        ("USER 10001:10001", "USER 0:0", "numeric user"),
        ('ENTRYPOINT ["hotset"]', "ENTRYPOINT hotset", "exec form"),
        ('-c constraints.txt ".[envoy,zttp]"', ".", "pinned"),
        ("COPY runtime runtime", "COPY . .", "whole"),
        ("COPY loader loader", "COPY loaders loaders", "in the repository"),
        ("compute,utility", "compute", "NVML"),
        (
            "COPY --from=build",
            "RUN apt-get install gcc\nCOPY --from=build",
            "final image",
        ),
        ("USER 10001:10001", "USER 10001:10001\nRUN true", "after the user"),
        ("\nFROM docker.io/library/python:${PYTHON}-slim\n", "\n", "one stage builds"),
        ("EXPOSE 8080 8081", "EXPOSE 8080", "ports"),
        ("RUN python -m venv", "RUNS python -m venv", "known instructions"),
        (
            "install -c constraints.txt torch",
            "install -c constraints.txt numpy",
            "torch",
        ),
        ("HOME=/tmp", "HOME=/tmp PYTHONPATH=/src", "PYTHONPATH"),
    ],
)
def test_the_image_rules_catch_a_mistake(old: str, new: str, fault: str) -> None:
    text = FILE.read_text()
    assert old in text
    changed = text.replace(old, new)
    assert any(fault in found for found in image_faults(changed))


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    ignore = (ROOT / ".dockerignore").read_text().split("\n")
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source
        for word, rest in instructions(FILE.read_text())
        if word == "COPY" and "--from" not in rest
        for source in shlex.split(rest)[:-1]
    }
    assert "*" in ignore
    assert allowed == copied
