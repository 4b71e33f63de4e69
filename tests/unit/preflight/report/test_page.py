"""The preflight report as text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from planned_runs import resolve_run

from rm_ray.estimate.moments import PARTS
from rm_ray.preflight.checks.verdict import fail, ok
from rm_ray.preflight.report.page import describe_estimate, describe_verdicts
from rm_ray.preflight.run_estimate import RunEstimate, Speed, estimate_run


def estimate_of(
    folder: Path, *, gpu_memory: int | None = 80 * 10**9, **cluster: Any
) -> RunEstimate:
    resolved = resolve_run(
        folder,
        model={"name_or_path": "some/model", "dtype": "bfloat16"},
        cluster={"num_workers": 64, "use_gpu": True, "zero_stage": 3} | cluster,
    )
    return estimate_run(resolved, least_workers=None, gpu_memory=gpu_memory, most_steps=100)


def test_a_failed_check_is_followed_by_its_remedy():
    page = describe_verdicts([ok("Hub", "nothing is published"), fail("disk", "full", "free it")])
    assert page.splitlines() == [
        "checks",
        "  ok       Hub             nothing is published",
        "  FAILED   disk            full",
        "                           -> free it",
    ]


def test_the_page_counts_pairs_steps_and_tokens(tmp_path):
    lines = describe_estimate(estimate_of(tmp_path)).splitlines()
    assert lines[0] == "pairs: 2,000 to train on, 0 held out, 3 refused"
    (steps,) = [line for line in lines if line.startswith("steps: ")]
    assert steps == "steps: 8 of up to 256 pairs; 2,000 episodes, 1 epoch, on 64 workers"
    (mine,) = [line for line in lines if line.endswith("<- these settings")]
    assert mine.startswith("  packed: ") and " 1.00 per distinct token; " in mine


def test_the_table_marks_the_settings_and_the_recommendation(tmp_path):
    estimate = estimate_of(tmp_path)
    lines = describe_estimate(estimate).splitlines()
    (mine,) = [line for line in lines if line.endswith("these settings") and "<-" not in line]
    assert estimate.chosen is not None
    memory = estimate.chosen.memory
    assert mine.split() == [
        "3", "no", "none", *(f"{memory.part(part) / 1e9:.1f}" for part in PARTS),
        f"{memory.device / 1e9:.1f}", *memory.peak.name.split(), f"{memory.machine / 1e9:.1f}",
        "fits,", "these", "settings",
    ]  # fmt: skip
    (best,) = [line for line in lines if line.endswith("recommended")]
    assert best.split()[:3] == ["2", "no", "none"]
    assert "  a GPU of 80 GB leaves 68.2 GB for tensors: --cluster.zero_stage 2 " in "\n".join(
        lines
    )


def test_if_nothing_fits_the_page_suggests_what_would_help(tmp_path):
    page = describe_estimate(estimate_of(tmp_path, gpu_memory=4 * 10**9))
    assert "nothing here fits; use more workers, or lower batch.tokens_per_micro_batch" in page
    unknown = describe_estimate(estimate_of(tmp_path, gpu_memory=None))
    assert "  the memory of a GPU is unknown; set it with --gpu_memory_gb" in unknown.splitlines()


def test_time_is_shown_in_hours_and_gpu_hours(tmp_path):
    estimate = estimate_of(tmp_path)
    assert describe_estimate(estimate).splitlines()[-1].startswith("time: pass --pairs_per_second")
    fast = replace(estimate, speed=Speed(pairs_per_second=20.0, source="given"))
    assert describe_estimate(fast).splitlines()[-1] == (
        "time: 0.03 hours at 20.0 pairs/s (given), 1.8 GPU-hours; startup, evaluation and "
        "checkpoints not included"
    )


def test_an_unknown_family_has_no_memory_table(tmp_path):
    page = describe_estimate(replace(estimate_of(tmp_path), why_no_memory="its layers are odd"))
    assert "memory: not estimated because its layers are odd" in page.splitlines()
