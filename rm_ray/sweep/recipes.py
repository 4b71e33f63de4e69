"""A configuration -> the YAML text of a recipe that gives it."""

from __future__ import annotations

from typing import Any

import yaml

from rm_ray.config.train_config import TrainConfig


def recipe_text(config: TrainConfig, comment: str = "") -> str:
    """Return a recipe with the settings that differ from their defaults, after a comment."""
    defaults: dict[str, dict[str, Any]] = TrainConfig().to_json()
    given = {
        section: {name: value for name, value in values.items() if value != defaults[section][name]}
        for section, values in config.to_json().items()
    }
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    body = yaml.safe_dump({k: v for k, v in given.items() if v}, sort_keys=False)
    return head + str(body)
