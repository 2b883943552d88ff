import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing is remembered from one test to the next."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VITMAE_CACHE", str(folder))
    return folder
