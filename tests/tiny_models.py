"""Small models by a config of their own."""

import json
from pathlib import Path

from rm_ray.config.sections.model import ModelConfig


def tiny(folder: Path, **fields: object) -> ModelConfig:
    path = folder / "model.json"
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 1024}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 1}
    path.write_text(json.dumps(sizes | shape | fields))
    return ModelConfig(name_or_path=str(path), tokenizer="builtin")
