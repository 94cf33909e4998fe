"""Every test has a cache of its own; none reads or fills the user's."""

import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    """Where prepared pictures are kept."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TINYDIFFUSION_CACHE", str(folder))
    return folder / "datasets"
