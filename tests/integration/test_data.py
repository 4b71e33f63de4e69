"""The token cache and the stream on a real Ray cluster."""

import gzip
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import psutil
import pytest
from tables import SHARED_DATA, chosen_ids, rejected_ids

from rm_ray.batches.plan import PlanSettings
from rm_ray.batches.stream import PlannedGroups, RankStream
from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.data import DataConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.cache_build import build_token_cache
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.cache.token_table import open_table
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.preflight.caches import build_caches, find_prompt_overlap
from rm_ray.storage import Storage
from rm_ray.worker.data_config import PerRankStreams

ROOT = Path(__file__).resolve().parents[2]


def build(specs: list[str], folder: Path, seed: int = 0, **limits: object):
    storage = Storage.open(str(folder))
    return build_token_cache(
        specs, DataConfig(**limits), load_tokenizer("builtin"), seed=seed, storage=storage
    )


def write_rows(path: Path, rows: list[object]) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def pair(question: str, better: str, worse: str) -> dict:
    return {"prompt": question, "chosen": better, "rejected": worse}


def test_exploded_pairs_of_several_files_become_lists_that_the_objective_can_use(cluster, tmp_path):
    answers = ["first", "second", "third", "fourth"]
    exploded = [pair("Which?", *sides) for sides in combinations(answers, 2)]
    rated = {"prompt": "How good?", "response": "fair", "score": 2}
    folder = tmp_path / "files"
    folder.mkdir()
    write_rows(folder / "a.jsonl", [*exploded[:3], rated])
    write_rows(folder / "b.jsonl", exploded[3:])
    storage = Storage.open(str(tmp_path / "storage"))

    def cached(**sections: dict) -> TokenCache:
        data = {"train": [str(folder)], "eval": [], "group_by_prompt": True}
        config = parse_config({"data": data, **sections})
        return build_caches(config, load_tokenizer("builtin"), storage)[0]

    lists = cached()
    table = open_table(lists.parts)
    assert table.columns.num_responses.tolist() == [4]
    assert table.columns.num_comparisons.tolist() == [6]
    assert (lists.num_rows, lists.unit) == (6, "groups")
    assert lists.refused == {"nothing for the objective to learn from": 1}
    (refused,) = map(json.loads, Path(lists.quarantine).read_text().splitlines())
    assert json.loads(refused["raw"]) == rated
    assert cached().parts.key == lists.parts.key  # reused
    longest = int(table.lengths.distinct[0])
    divided = cached(batch={"tokens_per_micro_batch": longest - 1})
    assert open_table(divided.parts).columns.num_responses.max() < 4
    assert divided.num_comparisons == 6
    scored = cached(objective={"loss": "regression"}, data={
        "train": [str(folder)], "eval": [], "max_refused_fraction": 0.9,
    })  # fmt: skip
    assert (scored.num_groups, scored.num_scores) == (1, 1)
    assert scored.num_refused == 6


def test_a_mixture_is_cached_in_order_with_its_quarantine(cluster, tmp_path):
    good = [pair(f"Question {i}?", f"yes {i}", f"no {i}") for i in range(30)]
    bad = [pair("q", "same", "same"), {"chosen": 3, "rejected": []}, [1, 2]]
    first = write_rows(tmp_path / "a.jsonl", [*good[:10], *bad, *good[10:20]])
    second = write_rows(tmp_path / "b.jsonl.gz", good[20:])
    cache = build([first, second, "builtin:test=0.1"], tmp_path / "storage")
    assert cache.num_groups == 30 + 50
    assert cache.refused == {"not messages": 2, "identical responses": 1}
    table = open_table(cache.parts)
    ids = [table.group_id(i) for i in range(len(table))]
    rows = [*range(10), *range(13, 23)]
    assert ids[:20] == [f"{first}:{row}" for row in rows]
    assert ids[20:30] == [f"{second}:{row}" for row in range(10)]
    tokenizer = load_tokenizer("builtin")
    assert "Question 13?" in tokenizer.decode(chosen_ids(table, 13))
    assert "yes 13" in tokenizer.decode(chosen_ids(table, 13))
    assert "no 13" in tokenizer.decode(rejected_ids(table, 13))
    refused = [json.loads(line) for line in Path(cache.quarantine).read_text().splitlines()]
    found = {(row["origin"], row["row"], row["reason"]) for row in refused}
    assert found == {
        (first, 10, "identical responses"),
        (first, 11, "not messages"),
        (first, 12, "not messages"),
    }
    assert [json.loads(row["raw"]) for row in sorted(refused, key=lambda r: r["row"])] == bad


def test_training_pairs_with_a_held_out_prompt_are_counted_and_left_out_on_demand(
    cluster, tmp_path
):
    rows = [pair(f"Question {i}?", "yes", "no") for i in range(8)]
    again = [pair("Question 0?", "yes", "no"), pair("QUESTION 1?", "no", "yes")]
    train = write_rows(tmp_path / "train.jsonl", [*rows, *again])
    held = write_rows(
        tmp_path / "eval.jsonl", [pair("question  1?", "a", "b"), pair("x", "a", "b")]
    )
    storage, tokenizer = Storage.open(str(tmp_path / "storage")), load_tokenizer("builtin")
    data = DataConfig(train=(train,), eval=(held,))
    config = TrainConfig(data=data)
    kept, held_out = build_caches(config, tokenizer, storage)
    assert (kept.num_groups, kept.duplicates, kept.contradictions) == (10, 1, 2)
    assert find_prompt_overlap(kept, held_out) == {held: 1}
    without = replace(config, data=replace(data, drop_overlap=True))
    left, same = build_caches(without, tokenizer, storage)
    assert left.refused == {"prompt is held out too": 2}
    assert (left.num_groups, left.duplicates, left.contradictions) == (8, 1, 0)
    assert find_prompt_overlap(left, same) == {}
    assert same.identity == held_out.identity and left.identity != kept.identity


def test_the_same_key_is_found_and_a_changed_one_is_built(cluster, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [pair(f"Question {i}?", "yes " * (i + 1), "no") for i in range(8)]
    spec = write_rows(path, rows)
    storage = tmp_path / "storage"
    first = build([spec], storage)
    stamp = Path(first.quarantine).stat().st_mtime_ns
    again = build([spec], storage)
    assert again == first
    assert Path(again.quarantine).stat().st_mtime_ns == stamp
    shorter = build([spec], storage, max_length=20)
    assert shorter.identity != first.identity
    assert shorter.num_groups < first.num_groups
    assert set(shorter.refused) == {"too long"}
    moved = build([write_rows(tmp_path / "moved.jsonl", rows)], storage)
    assert (moved.identity, moved.data_hash) == (first.identity, first.data_hash)
    assert open_table(moved.parts).group_id(0) == f"{tmp_path / 'moved.jsonl'}:0"
    write_rows(path, rows[:-1])
    fewer = build([spec], storage)
    assert (fewer.num_groups, first.num_groups) == (7, 8)
    assert fewer.data_hash != first.data_hash
    for manifest in storage.glob("token_cache/*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"build": "../../x"}))
    with pytest.raises(InputError, match=r"'\.\./\.\./x', which is not a valid build name"):
        build([spec], storage)


BUILDER = """
import sys
sys.path.insert(0, sys.argv[1])
from rm_ray.cluster.ray_cluster import ray_cluster
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_build import build_token_cache
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.storage import Storage

with ray_cluster(ClusterConfig()):
    build_token_cache([sys.argv[3]], DataConfig(), load_tokenizer("builtin"), seed=0,
                      storage=Storage.open(sys.argv[2]))
"""


def test_an_interrupted_build_never_passes_for_a_finished_one(cluster, tmp_path):
    """A process that builds a cache is killed with its tasks as soon as a part is written."""
    storage = tmp_path / "storage"
    began = time.time()
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(ROOT), str(storage), "builtin:train=2000"]
    )
    while builder.poll() is None and not list(storage.glob("token_cache/*/build-*/parts/*")):
        time.sleep(0.01)
    below = psutil.Process().children(recursive=True)
    tasks = [process for process in below if is_task_since(began, process)]
    builder.kill()
    for process in tasks:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    builder.wait()
    psutil.wait_procs(tasks, timeout=60)
    assert tasks
    assert list(storage.glob("token_cache/*/build-*/parts/*"))
    assert not list(storage.glob("token_cache/*/manifest.json"))
    cache = build(["builtin:train=2000"], storage)
    assert (cache.num_groups, len(cache.parts.origins)) == (2000, 1)
    assert len(list(storage.glob("token_cache/*/manifest.json"))) == 1


def is_task_since(began: float, process: psutil.Process) -> bool:
    """Tell whether a process is one of Ray's that was started after a time."""
    try:
        return process.create_time() > began and process.cmdline()[0].startswith("ray::")
    except (psutil.NoSuchProcess, IndexError):
        return False


def test_real_rows_that_are_broken_upstream_are_all_refused(cluster, tmp_path):
    path = SHARED_DATA / "malformed_raw.jsonl"
    if not path.exists():
        pytest.skip(f"needs the real pairs in {SHARED_DATA}")
    cache = build([str(path)], tmp_path / "storage")
    assert cache.num_groups == 0
    assert cache.refused == {
        "empty": 28,
        "speaker tag inside a turn": 24,
        "speakers do not alternate": 3,
    }


@pytest.fixture(scope="module")
def planned(cluster, tmp_path_factory) -> PlannedGroups:
    cache = build(["builtin:train=130"], tmp_path_factory.mktemp("stream"))
    settings = PlanSettings(
        global_batch_size=24, tokens_per_micro_batch=500, epochs=3, max_episodes=350, seed=4
    )
    return PlannedGroups(cache=cache.parts, settings=settings)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_rank_gets_its_plan_in_order_with_its_tokens(planned, world_size):
    table = open_table(planned.cache)
    plan = planned.plan(table)
    streams = PerRankStreams().configure({"train": planned}, world_size)
    for rank, stream in enumerate(shards["train"] for shards in streams):
        got = list(stream.steps(0, plan.steps.total))
        assert len(got) == plan.steps.total == 16
        for step, micro_batches in enumerate(got):
            expected = plan.micro_batches(step, rank=rank, world_size=world_size)
            assert len(micro_batches) == len(expected)
            for mine, theirs in zip(micro_batches, expected, strict=True):
                assert np.array_equal(mine.plan.groups, theirs.groups)
                assert np.array_equal(mine.plan.weights, theirs.weights)
                for k, p in enumerate(theirs.groups):
                    chosen, rejected = mine.groups.conversations(k)
                    assert np.array_equal(chosen, chosen_ids(table, p))
                    assert np.array_equal(rejected, rejected_ids(table, p))


def test_a_resumed_stream_begins_where_the_other_would_be(planned):
    whole = RankStream(planned=planned, rank=1, world_size=2)
    total = planned.plan(open_table(planned.cache)).steps.total
    ids = [[m.tokens.tolist() for m in step] for step in whole.steps(0, total)]
    for first in (1, 7, total - 1):
        resumed = [[m.tokens.tolist() for m in s] for s in whole.steps(first, total)]
        assert resumed == ids[first:]
    assert list(whole.steps(total, total)) == []


def test_a_rank_refuses_a_micro_batch_that_is_not_its_own(planned, monkeypatch):
    mine = RankStream(planned=planned, rank=0, world_size=2)
    other = RankStream(planned=planned, rank=1, world_size=2)
    rows = [micro_batch for step in other.steps(0, 2) for micro_batch in step]
    monkeypatch.setattr(RankStream, "_rows", lambda self, *steps: iter(rows))
    with pytest.raises(RuntimeError, match=r"rank 0 received .*\(0, 0, 1\), expected \(0, 0, 0\)"):
        list(mine.steps(0, 2))
