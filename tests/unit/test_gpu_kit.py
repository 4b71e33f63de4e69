"""The kit for a GPU works before there is one: its parts on a CPU, its archive, its arithmetic."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu import jobs_here, pack, run, speed
from gpu.bench import Bench
from gpu.finding import Finding, Values, attempt, cell, guard, render
from gpu.jobs_here import Asked, Outcome, settings_of, train_all
from gpu.shapes import NARROW, build_on, generated_lengths, shortened
from gpu.trace import Kernel, Trace
from machine import ROOT
from needs import find_lacking

from rm_ray.config.sections.model import ModelConfig
from rm_ray.model.build import build_reward_model

QUICK = [name for name in run.PARTS if name not in ("whole", "repeat")]
"""Parts without Ray."""


def go(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = ["bash", str(ROOT / "tests/gpu/run.sh"), *arguments, "--dry-cpu", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (out / "kit.json").exists(), done.stderr
    return done.returncode, json.loads((out / "kit.json").read_text())["parts"]


def test_every_part_without_ray_runs_on_a_cpu(tmp_path: Path) -> None:
    # In one process, as each would else import everything once more.
    command = [sys.executable, "-m", "gpu.part", *QUICK, "--out", str(tmp_path), "--dry-cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [*command, "--ends", str(time.monotonic() + 900)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    for name in QUICK:
        findings = run.read(tmp_path / f"{name}.jsonl")
        assert findings, name
        assert [each for each in findings if "failed" in each.values or each.ok is False] == []


def test_the_command_runs_a_part_and_writes_its_page(tmp_path: Path) -> None:
    code, parts = go(tmp_path, "liger")
    assert parts["liger"]["status"] == "done", (tmp_path / run.LOG).read_text()[-5000:]
    assert code == 0
    page = (tmp_path / "kit.md").read_text()
    assert page.startswith("# The kit on a GPU")
    assert "## liger" in page


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_parts_that_start_ray_run_on_a_cpu(tmp_path: Path) -> None:
    code, parts = go(tmp_path, "whole", "repeat")
    assert {name: part["status"] for name, part in parts.items()} == {
        "whole": "done",
        "repeat": "done",
    }, (tmp_path / run.LOG).read_text()[-9000:]
    assert code == 0


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gpu"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text(
        "import json, sys, time\n"
        "name, out = sys.argv[1], sys.argv[3]\n"
        "row = {'table': 'T', 'values': {'x': 1}, 'ok': name != 'syncs'}\n"
        "open(f'{out}/{name}.jsonl', 'w').write(json.dumps(row) + '\\n')\n"
        "print('rows in', out)\n"
        "if name == 'kernels': sys.exit('no such kernel')\n"
        "if name == 'speed': time.sleep(60)\n"
    )
    monkeypatch.setattr(run, "python_path", lambda: str(tmp_path))
    monkeypatch.setattr(run, "LIMIT_S", 10.0)
    monkeypatch.setattr(run, "PARTS", {name: run.Part(question="?", dry_s=10.0) for name in QUICK})
    out = tmp_path / "out"
    code = run.main(["kernels", "speed", "syncs", "liger", "--dry-cpu", "--out", str(out)])
    parts = json.loads((out / "kit.json").read_text())["parts"]
    assert code == 1
    assert parts["kernels"]["status"].startswith("failed with 1")
    assert "no such kernel" in parts["kernels"]["status"]
    assert parts["speed"]["status"].startswith("ended at its limit of 10 s")
    assert parts["syncs"]["status"] == "done, and 1 of 1 rows miss their goal"
    assert parts["liger"]["status"] == "done"
    assert [len(part["findings"]) for part in parts.values()] == [1, 1, 1, 1]
    assert sorted(path.name for path in out.iterdir()) == ["kit.json", "kit.log", "kit.md"]
    assert f"rows in {out}\n" in (out / run.LOG).read_text()  # where a kill of the kit leaves them


def test_no_part_is_started_once_the_budget_is_spent(tmp_path: Path) -> None:
    code = run.main(["kernels", "speed", "--dry-cpu", "--budget", "5", "--out", str(tmp_path)])
    parts = json.loads((tmp_path / "kit.json").read_text())["parts"]
    assert code == 1
    assert {part["status"] for part in parts.values()} == {"not started: the budget is spent"}


def test_an_unknown_part_is_refused_with_the_known_ones(capsys: Any) -> None:
    with pytest.raises(SystemExit) as refused:
        run.main(["kernel"])
    assert refused.value.code == 2
    assert "no such part: kernel; known are kernels, speed" in capsys.readouterr().err


def test_a_setting_that_fails_is_a_row_and_misses_its_goal() -> None:
    def fail() -> tuple[dict[str, Any], bool | None]:
        raise torch.OutOfMemoryError("no room\nfor 3 GB")

    finding = attempt("T", {"setting": 1}, fail)
    assert finding.ok is False
    assert finding.values == {"setting": 1, "failed": "OutOfMemoryError: no room"}


def test_what_fails_outside_of_a_setting_is_the_last_row() -> None:
    def find() -> Iterator[Finding]:
        yield Finding(table="T", values={"x": 1})
        raise ValueError("no kernels")

    first, last = guard("T", {"setting": 1}, find())
    assert first.values == {"x": 1}
    assert last.values == {"setting": 1, "failed": "ValueError: no kernels"}
    assert last.ok is False


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take every setting of ``speed`` for measured, with neither model nor profile."""

    def measure(_: Any, __: Any, setting: speed.Setting, *___: Any) -> tuple[Values, None]:
        return {"ms a step": 1.0, "computed/distinct": 1.0, "GB": 0.0}, None

    monkeypatch.setattr(speed, "measure_matrix_peak", lambda *_: 1.0)
    monkeypatch.setattr(speed, "build", lambda *_: None)
    monkeypatch.setattr(speed, "measure_setting", measure)
    monkeypatch.setattr(speed, "profile_step", lambda *_: iter(()))
    monkeypatch.setattr(speed, "find_spec", lambda _: None)
    return monkeypatch


def bench_until(ends: float, folder: Path) -> Bench:
    return Bench(device=torch.device("cpu"), folder=folder, ends=ends)


def fail(*_: Any) -> Any:
    raise torch.OutOfMemoryError("no room")


@pytest.mark.parametrize(
    ("broken", "failure", "num_lost"),
    [
        ("measure_setting", fail, 1),
        ("profile_step", lambda *_: iter(fail, None), 0),  # fails when it is gone through
        ("build", fail, len(speed.groups()[0])),
    ],
)
def test_speed_goes_on_after_a_first_setting_profile_or_set_up_that_fails(
    broken: str, failure: Any, num_lost: int, steps: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ways = itertools.chain([failure], itertools.repeat(getattr(speed, broken)))
    steps.setattr(speed, broken, lambda *arguments: next(ways)(*arguments))
    findings = list(speed.measure(bench_until(time.monotonic() + 900, tmp_path)))
    [failed] = [each.values["failed"] for each in findings if "failed" in each.values]
    assert failed == "OutOfMemoryError: no room"
    settings = sum(map(len, speed.groups()))
    assert sum("ms a step" in each.values for each in findings) == settings - num_lost


def test_packed_over_padded_comes_before_any_other_model_and_compiling_wants_more_time(
    steps: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    findings = list(speed.measure(bench_until(time.monotonic() + 30, tmp_path)))
    ratios = [i for i, each in enumerate(findings) if "ratio of tokens" in each.values]
    padded = [i for i, each in enumerate(findings) if each.values.get("pairs") == "padded"]
    assert ratios == [i + 1 for i in padded]
    late = [each.values for each in findings if "failed" in each.values]
    assert [(row["compiled"], row["failed"]) for row in late] == 2 * [(True, "no time was left")]


def asked_for(bench: Bench, *names: str) -> list[Asked]:
    return [
        Asked(name=name, settings=settings_of(bench, name, zero_stage=0, steps=20), killed=False)
        for name in names
    ]


def test_runs_at_once_share_no_storage_and_come_as_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = asked_for(bench_until(time.monotonic() + 900, tmp_path), "first", "second")
    paths = {Path(each.settings["run"]["storage_path"]) for each in (first, second)}
    assert len(paths) == 2
    assert not any(one in other.parents for one in paths for other in paths)

    let_go = threading.Event()

    def train(_: Bench, asked: Asked) -> Outcome:
        assert asked.name == "second" or let_go.wait(60)
        return Outcome(asked=asked, values={})

    monkeypatch.setattr(jobs_here, "train", train)
    monkeypatch.setattr(os, "cpu_count", lambda: 2 * jobs_here.CORES_A_JOB)
    outcomes = train_all(bench_until(time.monotonic() + 900, tmp_path), [first, second])
    assert next(outcomes).asked.name == "second"
    let_go.set()
    assert next(outcomes).asked.name == "first"


def test_whatever_goes_wrong_with_a_run_is_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_until(time.monotonic() + 900, tmp_path)
    monkeypatch.setattr(jobs_here, "run_to_end", lambda *_: 0.0)
    [outcome] = train_all(bench, asked_for(bench, "run"))  # it left no files
    assert outcome.problem.startswith("FileNotFoundError")
    assert outcome.values["failed"] == outcome.problem

    late = bench_until(time.monotonic(), tmp_path)
    [outcome] = train_all(late, asked_for(late, "run"))
    assert outcome.problem == "TimeoutError: no time was left"


def test_a_run_that_outlasts_the_part_is_killed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_here, "LEAST_S", 0.0)
    bench = bench_until(time.monotonic() + 2, tmp_path)
    [outcome] = train_all(bench, asked_for(bench, "run"))
    assert outcome.problem == "TimeoutError: the run's end did not come in the part's time"
    assert time.monotonic() < bench.ends + run.TIDY_S


def test_rows_of_one_table_share_columns_and_figures_have_three_digits() -> None:
    rows = [
        Finding(table="T", values={"a": 1234.5, "b": True}, ok=True),
        Finding(table="T", values={"a": 0.00001234, "c": "x|y"}, ok=False),
    ]
    assert render(rows).splitlines() == [
        "T",
        "",
        "| a | b | c | goal |",
        "| --- | --- | --- | --- |",
        "| 1,234 | yes |  | kept |",
        "| 1.23e-05 |  | x/y | **MISSED** |",
    ]
    assert [cell(value) for value in (0.0, 0.5, 12.345, 5, 3e12)] == [
        "0", "0.5", "12.3", "5", "3.00e+12",
    ]  # fmt: skip


def test_time_without_a_kernel_is_idle_and_overlap_is_counted_once() -> None:
    trace = Trace(
        kernels=[
            Kernel("sm90_xmma_gemm", 0, 40),
            Kernel("flash_fwd_kernel", 30, 50),
            Kernel("index_select", 75, 100),
        ]
    )
    assert trace.busy == 75
    assert trace.idle_share == pytest.approx(0.25)
    assert trace.shares()["matrix products"] == pytest.approx(40 / 85)
    assert trace.shares()["gathering keys"] == pytest.approx(25 / 85)
    assert trace.longest(1) == [("sm90_xmma_gemm", 1, pytest.approx(40 / 85))]


def test_the_model_built_on_a_device_is_the_one_that_training_builds(tmp_path: Path) -> None:
    fields = {**NARROW, "num_hidden_layers": 2}
    model = build_on(torch.device("cpu"), fields, tmp_path, dtype=torch.float32)
    vocabulary: Any = type("V", (), {"__len__": lambda _: 512, "pad_token_id": 511,
                                     "bos_token_id": None, "eos_token_id": None})()  # fmt: skip
    config = ModelConfig(name_or_path=str(tmp_path / "model.json"))
    trained = build_reward_model(config, vocabulary, seed=0)
    shapes = [
        {name: (type(p), p.shape, p.dtype) for name, p in each.named_parameters()}
        for each in (model, trained)
    ]
    assert shapes[0] == shapes[1]
    layers = [str(each.classifier) for each in (model, trained)]
    assert layers[0] == layers[1]
    assert model.classifier.config.to_dict() == trained.classifier.config.to_dict()


def test_generated_lengths_are_like_the_real_pairs() -> None:
    lengths = generated_lengths(np.random.default_rng(0), 20_000)
    # Of the 3,354 real pairs: 461 distinct tokens, 1.62 times as many in both conversations.
    assert lengths.distinct.mean() == pytest.approx(461, rel=0.2)
    assert lengths.all.sum() / lengths.distinct.sum() == pytest.approx(1.62, rel=0.1)
    for some in (lengths, shortened(lengths, 16)):
        assert (some.num_responses == 2).all()
        assert (some.prefix < some.conversations.reshape(-1, 2).min(axis=1)).all()


def test_what_the_archive_carries_follows_from_the_requirements() -> None:
    there = pack.read_machine()
    carried = {name for name in pack.closure(pack.read_roots()) if name not in there}
    assert {"ray", "deepspeed", "transformers", "mlflow", "pydantic", "mlflow-skinny"} <= carried
    assert not carried & {"torch", "numpy", "pyarrow", "nvidia-nccl-cu13", "trl"}


def test_an_import_that_comes_from_nowhere_stops_the_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = pack.read_machine()
    imported = sorted(pack.imported() - {"ray"})
    for module in imported:
        (tmp_path / module).mkdir()
    with pytest.raises(SystemExit, match=r"neither carried nor in machine\.txt: ray$"):
        pack.list_imports(tmp_path, there)
    (tmp_path / "ray").mkdir()
    assert "| ray | ray | archive |" in pack.list_imports(tmp_path, there)


def test_the_core_benchmark_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"transformers": "5.17.0"}
    monkeypatch.setattr("needs.version_of", versions.get)
    words = find_lacking(recomputes=True, liger="off", device="cuda")
    assert words is not None and "needs transformers 5.23 or newer" in words and "5.17.0" in words
    words = find_lacking(recomputes=False, liger="auto", device="cuda")
    assert words is not None and "needs liger-kernel" in words
    assert find_lacking(recomputes=False, liger="auto", device="cpu") is None
    versions |= {"transformers": "5.23.0", "liger-kernel": "0.8.5"}
    assert find_lacking(recomputes=True, liger="on", device="cuda") is None
