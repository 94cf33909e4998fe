"""What has to be the same for two numbers to be comparable."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any


def provenance(spec: Mapping[str, Any], *packages: str) -> dict[str, Any]:
    """JSON-able: the extractor's spec, with its name as `extractor`, and package versions."""
    rest = {key: value for key, value in spec.items() if key != "name"}
    versions = {package: version(package) for package in ("torch", *packages)}
    return {"extractor": spec["name"], **rest, "packages": versions}
