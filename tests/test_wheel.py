"""What a wheel of hotset holds: a tree installed in place has all, and cannot tell."""

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[1]
OURS = ("runtime", "protos", "eviction", "loader")


def test_every_module_is_of_a_package_that_the_wheel_holds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = find_packages(
        str(ROOT), **project["tool"]["setuptools"]["packages"]["find"]
    )
    modules = [path for folder in OURS for path in (ROOT / folder).rglob("*.py")]
    of_modules = {".".join(m.relative_to(ROOT).parent.parts) for m in modules}

    assert "runtime.http2" in found
    assert set(found) == of_modules
