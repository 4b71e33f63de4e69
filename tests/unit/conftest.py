"""What unit tests share."""

import gzip
import io
import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, serving
from huggingface_hub import snapshot_download
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.model.build import build_reward_model
from rm_ray.model.export import export_model
from rm_ray.publish import export_gate, hub

# No deadlines: a busy machine is no failure. `--hypothesis-profile thorough` is a longer proof.
settings.register_profile("quick", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=1_000)
settings.load_profile("quick")


# A thread of an earlier test may still try an address where nothing is.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def pytest_runtest_teardown() -> None:
    """Undo what a command sets for its process and for those that it starts."""
    os.environ.pop("PYTHONSAFEPATH", None)
    package = logging.getLogger("rm_ray")
    package.handlers.clear()
    package.setLevel(logging.NOTSET)
    package.propagate = True  # caplog listens above


SHARED_DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a file or folder of the real data, or skips the test where it is absent."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"the real pairs are not here: no {path}")
        return path

    return find


@pytest.fixture(scope="session")
def real_rows(shared_data: Callable[[str], Path]) -> Callable[[str], Iterator[dict[str, Any]]]:
    """Reads the rows of a JSON Lines file of the real data."""

    def read(name: str) -> Iterator[dict[str, Any]]:
        path = shared_data(name)
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            yield from map(json.loads, lines)

    return read


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The built-in tokenizer; tests that change one load their own."""
    return load_tokenizer("builtin")


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Keep tests from asking the real Hub: without a network its client retries for 23 s."""
    hub.open_api(None)  # replaces the client, before a thread uses it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address; the client waits little between its tries."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub, "LONGEST_DELAY_S", 0.1)
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


@pytest.fixture
def clients_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the export gate's clients score here; ``test_export_gate.py`` has a fresh process."""
    from rm_ray.publish import clients  # takes a second to import

    def run(command: list[str], *, input: str, **_: Any) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch, redirect_stdout(io.StringIO()) as answer:
            patch.setattr(sys, "argv", command[-2:])
            patch.setattr(sys, "stdin", io.StringIO(input))
            status = clients.main()
        return subprocess.CompletedProcess(command, status, answer.getvalue(), "")

    monkeypatch.setattr(
        export_gate,
        "subprocess",
        SimpleNamespace(run=run, SubprocessError=subprocess.SubprocessError),
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in Llama with random weights, in float32."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = load_tokenizer("builtin")
    model = build_reward_model(ModelConfig(), tokenizer, seed=0)
    export_model(model, model.state_dict(), tokenizer, folder, dtype=torch.float32)
    return folder


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, and ends those that a test leaves running."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(["/bin/bash", "-c", script], **pipes | options)
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()
