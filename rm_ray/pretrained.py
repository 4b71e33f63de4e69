"""Names of models and tokenizers: built-in, a folder, a config.json, or a name on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rm_ray.config.sections.data import BUILTIN
from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError, first_line

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
        except UNREADABLE as error:
            raise self._refusal(error, contents) from None

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
    """Return the name of the model that a run starts from."""
    return PretrainedName(
        name=config.name_or_path, option="model.name_or_path", revision=config.revision
    )
