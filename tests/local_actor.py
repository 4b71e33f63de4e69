"""An actor in this process: a call runs at once, and its result is its own reference."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray


class LocalActor:
    """Wraps an object as Ray's handle of an actor does."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._instance, name))


def use_local_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``ray.get`` return what calls of local actors returned."""
    monkeypatch.setattr(ray, "get", lambda reference, timeout=None: reference)
