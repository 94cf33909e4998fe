"""What must be the same for two numbers to be comparable, and a warning where it is unknown."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any


def provenance(spec: Mapping[str, Any], *packages: str) -> dict[str, Any]:
    """Return the extractor's spec, its name as `extractor`, and package versions, JSON-able."""
    rest = {key: value for key, value in spec.items() if key != "name"}
    versions = {package: version(package) for package in ("torch", *packages)}
    return {"extractor": spec["name"], **rest, "packages": versions}


def unverified(spec: Mapping[str, Any]) -> list[str]:
    """Return a warning for rows of an extractor whose weights are not known to be genuine."""
    if spec["verified"]:
        return []
    return [
        f"the weights of {spec['name']} are not verified (SHA-256 {spec['weights_sha256'][:16]}...)"
        ": compare this only with numbers of the same weights"
    ]
