"""A Hub on loopback, and runs to publish on it."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKEN, serving
from huggingface_hub import snapshot_download

from rm_ray.publish import hub


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address; the client waits little between its tries."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub, "LONGEST_DELAY_S", 0.1)
    monkeypatch.setattr(hub, "ANSWER_S", 0.5)
    monkeypatch.setattr(hub, "FIRST_DELAY_S", 0.02)
    with serving(tmp_path / "hub") as address:
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield address


@pytest.fixture
def contents(endpoint: str, tmp_path: Path) -> Callable[[str, str], dict[str, bytes]]:
    """What a revision of a repository holds, as a client downloads it."""

    def download(repo_id: str, revision: str) -> dict[str, bytes]:
        folder = tmp_path / uuid.uuid4().hex
        snapshot_download(repo_id, revision=revision, local_dir=folder, endpoint=endpoint)
        paths = (p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts)
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    return download
