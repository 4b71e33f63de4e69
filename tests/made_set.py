"""A named set as a preflight finds it: two files of a row each, and their token caches."""

import json
from dataclasses import replace
from pathlib import Path

from made_cache import group_row, make_parts
from planned_runs import empty_cache

from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.storage import Storage

SUBSETS = ("alpacaeval-easy", "hep-cpp")


def make_set(
    folder: Path, metric: str | None = None, *, subsets: bool, compared: bool = True
) -> tuple[TrainConfig, dict[str, TokenCache], TokenCache]:
    """Return settings, the cache of the set ``bench``, and that of one training pair.

    With ``subsets`` the rows are RewardBench's; unless ``compared``, the first compares nothing.
    """
    folder.mkdir()
    rows, files = [], []
    for i, subset in enumerate(SUBSETS):
        row = {"prompt": f"Q{i}", "chosen": "a", "rejected": "b"}
        file = folder / f"{i}.jsonl"
        file.write_text(json.dumps(row | ({"subset": subset} if subsets else {})) + "\n")
        comparisons = [(0, 1)] if compared or i else []
        about = {"source": str(file), "prompt_hash": bytes([i]) * 16}
        rows.append(group_row(i, 0, [[1, 2], [1, 3]], comparisons, **about))
        files.append(str(file))
    config = parse_config(
        {
            "evaluation": {"sets": {"bench": files}},
            "checkpoint": {"keep_best_by": metric},
        }
    )
    cache = replace(
        empty_cache(Storage.open(str(folder)), num_groups=2),
        parts=make_parts(folder / "parts", rows, origins=files),
        num_comparisons=sum(len(row["better"]) for row in rows),
    )
    train = replace(cache, parts=make_parts(folder / "train", rows[:1], origins=files))
    return config, {"bench": cache}, train
