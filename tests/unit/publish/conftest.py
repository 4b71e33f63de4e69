"""Fixtures of the publishing tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from rm_ray.publish import version_builder
from rm_ray.publish.export_gate import GateResult


@pytest.fixture
def quick_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the gate's slow fresh process; test_export_gate.py and test_published_run.py use it."""

    def passes(folder: Path, reference: dict, dtype: str) -> GateResult:
        assert (folder / "model.safetensors").is_file()
        assert (len(reference["scored"]), dtype) == (16, "float32")
        return GateResult(differences={"alone": 1e-7}, num_conversations=16)

    monkeypatch.setattr(version_builder, "run_export_gate", passes)


@pytest.fixture
def tags(endpoint: str) -> Callable[[], dict[str, str]]:
    """Return the published repository's tags with their commits."""

    def listed() -> dict[str, str]:
        refs = HfApi(endpoint=endpoint).list_repo_refs("someone/rewards")
        return {ref.name: ref.target_commit for ref in refs.tags}

    return listed
