"""The quick form of the benchmark of long conversations, and the page of predicted ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
sys.path[:0] = [str(BENCHMARKS)]

import predict_long  # noqa: E402
from run import BENCHMARKS as KNOWN  # noqa: E402


@pytest.mark.slow
def test_attention_and_plan_of_long_conversations_are_measured():
    benchmark = KNOWN["long"]
    script, *options = [*benchmark.command, *benchmark.quick]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert [one["length"] for one in figures["passes"]] == [512, 1_024]
    assert [one["distinct"] for one in figures["passes"]] == [768, 1_536]
    assert all(one["seconds"]["median"] > 0 for one in figures["passes"])
    per_token = [one["flops"] / one["distinct"] for one in figures["passes"]]
    assert per_token[0] < per_token[1]
    for (plan,) in figures["plans"]:
        assert 0 < plan["balance"] <= 1
        assert plan["balance"] <= plan["bound"] + 1e-9
        assert plan["largest"] <= max(plan["budget"], 3 * 32_768 // 2)


PAGE = (ROOT / "rm_ray" / "estimate" / "long.md").read_text()


def test_the_page_of_long_conversations_shows_the_current_predictions():
    for table in (predict_long.describe_memory(), predict_long.describe_time()):
        assert "\n".join(table) in PAGE, (
            "copy the output of tests/benchmarks/predict_long.py into rm_ray/estimate/long.md"
        )


def needed_gb(case, *, offloads: bool) -> float:
    lengths = predict_long.pair(case.length, shared=0)
    setting = case.setting(recomputes=True, offloads=offloads)
    return case.memory(lengths, setting).device / 1e9


def test_the_page_states_the_feed_forward_s_part_of_a_layer_and_the_host_s_memory():
    eight, seventy = predict_long.CASES
    setting = eight.setting(recomputes=True, offloads=True)
    kept = eight.activations(predict_long.pair(eight.length, shared=0), setting)
    # Three saved tensors with Liger, and the gradients of two branches, in bfloat16.
    feed_forward = 5 * 2 * eight.architecture.intermediate * 2 * eight.length
    assert f"{feed_forward / 1e9:.1f} of {(kept.layer + kept.working) / 1e9:.1f} GB" in PAGE
    large = seventy.activations(predict_long.pair(seventy.length, shared=0), setting)
    assert 8 * large.on_host == pytest.approx(680e9, rel=0.01) and "680 GB" in PAGE


@pytest.mark.parametrize("case", predict_long.CASES, ids=["8B", "70B"])
def test_long_conversations_fit_on_one_gpu_each_without_sequence_parallelism(case):
    lengths = predict_long.pair(case.length, shared=0)
    offloads = case.setting(recomputes=True, offloads=True)
    assert case.memory(lengths, offloads).device <= predict_long.ROOM
    longest = case.longest(offloads)
    assert longest > 3 * case.length
    assert f"{longest:,} " in PAGE and f"{needed_gb(case, offloads=True):.1f} GB" in PAGE
    assert f"{needed_gb(case, offloads=False):.1f} " in PAGE
    for length, fits in ((longest, True), (longest + 1_024, False)):
        needed = case.memory(predict_long.pair(length, shared=0), offloads).device
        assert (needed <= predict_long.ROOM) is fits
