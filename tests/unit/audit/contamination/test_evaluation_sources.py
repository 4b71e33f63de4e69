"""Sources of evaluation sets to their prompts."""

import json
from pathlib import Path
from typing import Any

from rm_ray.audit.contamination.evaluation_sources import read_evaluation_prompts
from rm_ray.config.column_rules import NO_RULES
from rm_ray.data.cache.overlap import hash_group
from rm_ray.data.preferences.group_reading import parse_group


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_are_those_of_pairs_of_benchmarks_and_of_prompts_alone(tmp_path: Path):
    pair = {"prompt": "Why is it so?", "chosen": "So.", "rejected": "No."}
    bench = {
        "prompt": "Which one?", "chosen": ["A"], "rejected": ["B", "C", "D"],
        "num_correct": 1, "subset": "Focus", "id": "1",
    }  # fmt: skip
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    sets = {
        "one": (write(tmp_path / "a.jsonl", pair), write(tmp_path / "b.jsonl", bench)),
        "two": (
            write(tmp_path / "c.jsonl", {"prompt": "Alone?"}, {"prompt": system}, {"prompt": 5}),
        ),
    }

    found = list(read_evaluation_prompts(sets, NO_RULES, 0))

    assert [(each.name, each.row, each.text) for each in found] == [
        ("one", 0, "Why is it so?"),
        ("one", 0, "Which one?"),
        ("two", 0, "Alone?"),
        ("two", 1, "Who?"),
    ]
    trained = {"prompt": "why is  it SO?", "chosen": "1", "rejected": "2"}
    assert found[0].key == hash_group(parse_group(trained))["prompt_hash"]
