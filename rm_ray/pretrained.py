"""Names of models and tokenizers: built-in, a folder, a config.json, or a name on the Hub."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rm_ray.config.sections.data import BUILTIN
from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError, first_line

ADAPTER_CONFIG = "adapter_config.json"
"""The file that makes a folder an adapter of peft."""

WITHOUT_ADAPTER = {"adapter_kwargs": {"subfolder": "no-adapter"}}
"""Options of ``from_pretrained`` that keep transformers from finding an adapter beside a model.

A merged model's folder may still hold the adapter, which would be added to its weights again.
"""

Kind = Literal["builtin", "config", "folder", "hub"]

UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError,
    StrictDataclassError, SafetensorError,
)  # fmt: skip
"""What transformers raises for a missing or broken model or tokenizer."""


@dataclass(frozen=True, kw_only=True)
class PretrainedName:
    """The name of a model or tokenizer, and the option that set it."""

    name: str
    option: str
    """The option, for errors: ``model.name_or_path``, ``model.tokenizer`` or ``--model``."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""

    @property
    def kind(self) -> Kind:
        """What the name refers to; the Hub if nothing local matches."""
        if self.name == BUILTIN:
            return "builtin"
        if self.path.suffix == ".json":
            return "config"
        return "folder" if self.path.is_dir() else "hub"

    @property
    def path(self) -> Path:
        """The name as a local path."""
        return Path(self.name).expanduser()

    @property
    def place(self) -> str:
        """Argument for transformers' ``from_pretrained``: a folder's path, or the name itself."""
        return str(self.path) if self.path.is_dir() else self.name

    @property
    def has_weights(self) -> bool:
        """Whether the model has weights, not just a config."""
        return self.kind in ("folder", "hub")

    @property
    def text(self) -> str:
        """The option and the name; errors start with it."""
        return f"{self.option} '{self.name}'"

    @contextmanager
    def loading(self, contents: str) -> Iterator[None]:
        """Turn any exception that transformers raises while loading into one error for the user.

        ``contents`` describes what the name may be besides one on the Hub: "a folder with ...".

        Raises:
            InputError: it is missing, unreachable or broken, or needs custom code.
        """
        try:
            yield
        except Exception as error:  # others go on as they are
            if isinstance(error, UNREADABLE) or type(error) is Exception:  # as tokenizers raises
                raise self._refusal(error, contents) from None
            raise

    def _refusal(self, error: Exception, contents: str) -> InputError:
        if "trust_remote_code" in str(error):
            return InputError(
                f"{self.text} needs custom code (auto_map in its config.json), which is never run; "
                "choose a model whose architecture transformers supports"
            )
        revision = f", revision '{self.revision}'" if self.revision else ""
        return InputError(
            f"{self.text}{revision} cannot be loaded: it must be {contents}, or a name on the "
            "Hugging Face Hub, which this machine must reach (set HF_TOKEN for a gated or private "
            f"model, HF_ENDPOINT for a mirror). {first_line(error)}"
        )


def base_model(config: ModelConfig) -> PretrainedName:
    """Return the name of the model whose weights a run starts from.

    If ``model.name_or_path`` is an adapter, this is its base model.

    Raises:
        InputError: it is an adapter that does not name its base model, or names another adapter.
    """
    name = _named_model(config)
    adapter = read_adapter_config(name)
    if adapter is None:
        return name
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{name.text} is an adapter whose {ADAPTER_CONFIG} does not name its base model. Add "
            "base_model_name_or_path to it"
        )
    model = PretrainedName(
        name=base,
        option=f"{name.text} is an adapter, and its base model",
        revision=adapter.get("revision"),
    )
    if read_adapter_config(model) is not None:
        raise InputError(
            f"{model.text} is an adapter too. Merge that one into its own base model with peft's "
            f"merge_and_unload(), save the model, and name its folder in {ADAPTER_CONFIG}"
        )
    return model


def adapter_of(config: ModelConfig) -> PretrainedName | None:
    """Return the adapter that ``model.name_or_path`` names; None if it names a whole model."""
    name = _named_model(config)
    return None if read_adapter_config(name) is None else name


def _named_model(config: ModelConfig) -> PretrainedName:
    return PretrainedName(
        name=config.name_or_path, option="model.name_or_path", revision=config.revision
    )


def read_adapter_config(name: PretrainedName) -> dict[str, Any] | None:
    """Return a model's adapter config; None if it is not an adapter.

    Raises:
        InputError: the file is broken.
    """
    found = find_adapter_config(name)
    if found is None:
        return None
    try:
        config: dict[str, Any] = json.loads(found.read_text())
    except ValueError as error:
        raise InputError(f"{name.text}: {ADAPTER_CONFIG} is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(
            f"{name.text}: {ADAPTER_CONFIG} holds a {type(config).__name__} instead of settings by "
            "name. Save the adapter again, with peft's save_pretrained"
        )
    return config


def find_adapter_config(name: PretrainedName) -> Path | None:
    """Return the file of an adapter's config; None if the model is not an adapter."""
    is_whole = name.kind == "folder" and (name.path / "config.json").exists()
    return None if is_whole else find_file(name, ADAPTER_CONFIG)  # a merged one may keep it


def find_file(name: PretrainedName, file: str) -> Path | None:
    """Return a small file of a model in a folder or on the Hub; None if there is none."""
    if name.kind == "hub":
        return _find_on_hub(name.name, file, name.revision)
    found = name.path / file
    return found if name.kind == "folder" and found.is_file() else None


def forget_missing() -> None:
    """Ask the Hub again for files that were not found."""
    _find_on_hub.cache_clear()


@functools.cache
def _find_on_hub(name: str, file: str, revision: str | None) -> Path | None:
    """Return a model's file on the Hub; asks once per process."""
    from transformers.utils.hub import cached_file  # takes seconds to import

    try:
        found = cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no name of a model; loading it says so
        return None
    return Path(found) if found else None
