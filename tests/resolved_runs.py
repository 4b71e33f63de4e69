"""Runs as a driver gets them: built-in pairs tokenised in this process, everything settled."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from made_cache import make_parts

from rm_ray.batches.plan import Plan
from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.cache.token_table import open_table
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.model.build import check_architecture
from rm_ray.preflight.held_out.named_sets import NamedSet
from rm_ray.preflight.planning import plan_settings
from rm_ray.preflight.resolved_run import PlannedRun, ResolvedRun
from rm_ray.storage import Storage


def builtin_cache(folder: Path, split: str, *, num_groups: int) -> TokenCache:
    """Tokenise generated pairs into a cache as a build leaves it."""
    tokenizer = GroupTokenizer(load_tokenizer("builtin"), DataConfig())
    texts = [json.dumps(row) for row in generate_pairs(split, num_groups)]
    rows = [
        {"fragment": 0, "row": i, **row}
        for i, row in enumerate(tokenize_rows(tokenizer, texts, ["builtin"] * num_groups))
    ]
    return TokenCache(
        identity=f"identity of {split}",
        parts=make_parts(folder / split, rows, origins=("builtin",)),
        folder=Storage.open(str(folder)),
        data_hash=f"hash of {split}",
        num_rows=num_groups,
        num_groups=num_groups,
        num_responses=2 * num_groups,
        num_comparisons=num_groups,
        num_ties=0,
        num_scores=0,
        num_tokens=sum(len(ids) for row in rows for ids in row["ids"]),
        groups_by_source={"builtin": num_groups},
        refused={"empty": 1},
        duplicates=0,
        contradictions=0,
        revisions={},
        readings=(),
    )


def builtin_run(
    folder: Path,
    *,
    num_held_out: int = 8,
    named_sets: Mapping[str, int] = MappingProxyType({}),
    **sections: Mapping[str, Any],
) -> ResolvedRun:
    """Return a run of the built-in model on 24 pairs, by 2 workers unless told otherwise.

    ``named_sets`` have so many pairs each.
    """
    given: dict[str, Any] = {
        "run": {"name": "small", "storage_path": str(folder / "storage")},
        "batch": {"global_batch_size": 8},
        "cluster": {"num_workers": 2, "use_gpu": False},
    }
    config = parse_config(given | sections)
    tokenizer = load_tokenizer("builtin")
    train = builtin_cache(folder, "train", num_groups=24)
    held_out = builtin_cache(folder, "test", num_groups=num_held_out) if num_held_out else None
    planned = PlannedRun(
        config=config,
        tokenizer=tokenizer,
        classifier=check_architecture(config.model, tokenizer),
        storage=Storage.open(config.run.storage_path),
        template_date=date(2026, 1, 31),
        train=train,
        held_out=held_out,
        overlap={"builtin": 1} if held_out else {},
        named_sets=tuple(
            NamedSet(name=name, cache=builtin_cache(folder / name, "test", num_groups=count))
            for name, count in named_sets.items()
        ),
        plan=Plan(
            lengths=open_table(train.parts).lengths,
            settings=plan_settings(config, layout=config.batch.layout, attention_weight=0.0),
        ),
    )
    return planned.settle(config.settle())
