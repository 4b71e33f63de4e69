"""A run on a real Ray cluster: what it measures and leaves behind, and what it refuses."""

import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import ray
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from outcomes import history
from plain_training import PlainRank, small_config
from runs import (
    BENCH_METRICS,
    EVAL_METRICS,
    NUM_STEPS,
    SECRETS,
    SUBSETS,
    TRAIN_METRICS,
    FinishedRun,
    bench_rows,
    check_mlflow,
    first_checkpoint,
    held_out_pairs,
    small_run,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_ray.batches.plan import PlanSettings, Steps
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.pair_losses import PairLosses
from rm_ray.commands.train import main
from rm_ray.config.recipe import parse_config
from rm_ray.data.sources.mixture import select
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.driver.drive import drive, dry_run
from rm_ray.errors import InputError
from rm_ray.publish.version_builder import VersionBuilder
from rm_ray.runs.manifest import find_fault, read_manifest
from rm_ray.runs.row_losses import RowLosses
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage
from rm_ray.worker.job import StoredJob


def test_result_json_says_what_was_done(finished: FinishedRun) -> None:
    result = json.loads((finished.folder / "result.json").read_text())
    assert result == finished.result
    assert (result["steps"], result["episodes"]) == (NUM_STEPS, 2 * 153)
    assert (result["train_pairs"], result["eval_pairs"], result["workers"]) == (153, 41, 2)
    assert result["metrics"].keys() >= TRAIN_METRICS | EVAL_METRICS | BENCH_METRICS
    assert result["eval_pairs_by_set"] == {"bench": 12}
    assert result["pairs_per_second"] > 0
    assert result["tokens_per_second"] > 20 * result["pairs_per_second"]
    for path in ("export", "best_checkpoint", "last_checkpoint", "plots"):
        assert Path(result[path]).is_dir(), path


def test_what_a_worker_is_given_is_unpickled_without_its_tokenizer(
    cluster: None, tmp_path: Path
) -> None:
    """As by Ray Train's controller, which need not wait seconds for imports."""
    job = PlainRank.make(tmp_path, small_config(tmp_path)).job

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"IN_A_PROCESS": "of its own"}})
    def unpickle(stored: StoredJob) -> tuple[str, bool, int]:
        is_loaded = "transformers" in sys.modules
        return repr(stored), is_loaded, len(stored.load().tokenizer)

    found = ray.get(unpickle.remote(StoredJob.of(job)))
    assert found == (repr(job), False, len(job.tokenizer))


def test_held_out_metrics_equal_those_of_the_exported_model(finished: FinishedRun) -> None:
    """Each pair once, whatever the number of workers: scored again alone, by transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(finished.folder / "export")
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / "export")
    rewards = {"chosen": [], "rejected": []}
    with torch.no_grad():
        for pair in held_out_pairs():
            for side, values in rewards.items():
                ids = tokenizer.apply_chat_template(pair[side], return_tensors="pt")
                values.append(model(**ids).logits[0, 0])
    chosen, rejected = (torch.stack(rewards[side]).double() for side in rewards)
    metrics = finished.result["metrics"]
    assert len(chosen) == 41
    assert metrics["eval/rm/accuracy"] == pytest.approx((chosen > rejected).double().mean().item())
    expected = {
        "eval/rm/loss": -F.logsigmoid(chosen - rejected).mean(),
        "eval/rm/chosen_rewards": chosen.mean(),
        "eval/rm/rejected_rewards": rejected.mean(),
        "eval/rm/reward_margin": (chosen - rejected).mean(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value.item(), abs=1e-5), name


def test_a_named_set_has_the_benchmark_s_averages_of_the_exported_model(
    finished: FinishedRun,
) -> None:
    """Scored again alone; easy and hard AlpacaEval weigh 100 and 95 in RewardBench's Chat."""
    model = AutoModelForSequenceClassification.from_pretrained(finished.folder / "export")
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / "export")
    right: dict[str, list[bool]] = {subset: [] for subset in SUBSETS}
    with torch.no_grad():
        for row in bench_rows():
            chosen, rejected = (
                model(**tokenizer.apply_chat_template(row[side], return_tensors="pt")).logits[0, 0]
                for side in ("chosen", "rejected")
            )
            right[row["subset"]].append(bool(chosen > rejected))
    easy, hard, code = (sum(each) / len(each) for each in right.values())
    chat = (100 * easy + 95 * hard) / 195
    metrics = finished.result["metrics"]
    assert metrics["eval/bench/accuracy"] == pytest.approx((easy + hard + code) / 3)
    assert metrics["eval/bench/score_on/chat"] == pytest.approx(chat)
    assert metrics["eval/bench/score_on/reasoning"] == pytest.approx(code)
    assert metrics["eval/bench/score"] == pytest.approx((chat + code) / 2)
    evaluated = [record for record in history(finished.folder) if record["kind"] == "eval"]
    assert [record["step"] for record in evaluated] == [5, 10, 15, 20]
    for record in evaluated:
        assert record["metrics"].keys() == EVAL_METRICS | BENCH_METRICS
    report = finished.folder / "evaluations" / "bench" / "step-00000020.json"
    assert json.loads(report.read_text())["benchmark"]["Chat"] == pytest.approx(chat)


def test_the_card_has_the_named_set(finished: FinishedRun, tmp_path: Path) -> None:
    run_folder = Storage.open(str(finished.folder))
    versions = Versions(run_folder=run_folder, repo_id="someone/rewards")
    config = parse_config(finished.settings)
    builder = VersionBuilder(run_folder=run_folder, config=config, versions=versions)
    version = Version(step=NUM_STEPS, tag="last", state="waiting")
    lines = (finished.folder / "history.jsonl").read_text()
    builder.describe(version, lines, None, finished.result, tmp_path)
    text = (tmp_path / "README.md").read_text()
    metrics = finished.result["metrics"]
    assert f"| bench | 12 | {metrics['eval/bench/accuracy']:.4f} |" in text
    assert f"Score {metrics['eval/bench/score']:.4f}." in text
    index = ModelCard.load(tmp_path / "README.md").data.eval_results
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in index}
    assert found["bench", "score"] == round(metrics["eval/bench/score"], 4)


def test_the_learning_rate_runs_over_all_steps_once(finished: FinishedRun) -> None:
    rates = [r["metrics"]["train/rm/lr"] for r in history(finished.folder) if r["kind"] == "train"]
    expected = [1e-3 * (s / 4 if s < 4 else (NUM_STEPS - s) / (NUM_STEPS - 4)) for s in range(20)]
    assert rates == pytest.approx(expected)


def test_mlflow_has_every_metric_of_every_step_once(finished: FinishedRun) -> None:
    check_mlflow(finished.result)


def test_samples_show_texts_and_rewards(finished: FinishedRun) -> None:
    samples = json.loads((finished.folder / "samples" / "step-000020.json").read_text())
    assert len(samples) == 5
    for sample, pair in zip(samples, held_out_pairs()[:5], strict=True):
        assert pair["chosen"][0]["content"] in sample["prompt"]
        assert sample["chosen"] == pair["chosen"][-1]["content"] + "<|end|>"
        assert sample["rejected"] == pair["rejected"][-1]["content"] + "<|end|>"
        assert sample["correct"] == (sample["chosen_reward"] > sample["rejected_reward"])


def test_the_best_and_the_newest_checkpoints_stay_whole(finished: FinishedRun) -> None:
    kept = sorted(finished.folder.glob("checkpoint_*/"))
    states = [json.loads((folder / "state.json").read_text()) for folder in kept]
    losses = {r["step"]: r["metrics"]["eval/rm/loss"] for r in history(finished.folder)
              if r["kind"] == "eval"}  # fmt: skip
    best = sorted(losses, key=lambda step: losses[step])
    beside = next(step for step in best if step != NUM_STEPS)  # two are kept, the newest is one
    assert {state["progress"]["step"] for state in states} == {beside, NUM_STEPS}
    assert str(kept[-1]) == finished.result["last_checkpoint"]
    best_folder = kept[[state["progress"]["step"] for state in states].index(best[0])]
    assert str(best_folder) == finished.result["best_checkpoint"]
    steps = Steps(num_groups=153, settings=PlanSettings(global_batch_size=16,
                  tokens_per_micro_batch=700, epochs=2))  # fmt: skip
    for folder, state in zip(kept, states, strict=True):
        name, run_folder = folder.name, Storage.open(str(finished.folder))
        assert find_fault(run_folder, name, read_manifest(run_folder, name)) is None
        assert state["world_size"] == 2
        assert state["progress"]["episode"] == steps.episodes_before(state["progress"]["step"])
        parts = [f"{part}-{rank:05d}.safetensors" for part in ("rng", "slices") for rank in (0, 1)]
        data = ("data/trained_pairs.npz", "data/pair_losses.npy")
        for file in (*parts, "state.json", "history.jsonl", *data):
            assert (folder / file).is_file(), file
        ledger = Ledger.read(folder / "data" / "trained_pairs.npz")
        assert ledger.counts.sum() == state["progress"]["episode"]


def test_the_loss_of_every_row_in_every_epoch_is_kept(finished: FinishedRun) -> None:
    kept = RowLosses.read(Storage.open(str(finished.folder)))
    assert kept is not None and kept.origins == ("builtin:train",)
    (selection,) = select([SourceSpec.parse("builtin:train=153")], seed=1)
    assert selection.rows is not None and kept.row.tolist() == selection.rows.tolist()
    assert kept.losses.shape == (2, 153) and not np.isnan(kept.losses).any()
    last = max(finished.folder.glob("checkpoint_[0-9]*"), key=lambda path: path.name)
    assert np.array_equal(kept.losses, PairLosses.read(last / "data" / "pair_losses.npy").values)
    records = history(finished.folder)
    losses = [each["metrics"]["train/rm/loss"] for each in records if each["kind"] == "train"]
    sizes = [*[16] * 9, 9] * 2
    for epoch, part in enumerate((slice(0, 10), slice(10, 20))):
        mean = np.average(losses[part], weights=sizes[part])
        assert kept.losses[epoch].mean() == pytest.approx(mean, rel=1e-5)


def test_the_same_command_again_says_it_is_finished(finished: FinishedRun) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.is_file()}
    assert drive(parse_config(finished.settings)) == finished.result
    after = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.is_file()}
    assert before == after


def test_a_changed_configuration_under_an_old_name_is_refused(finished: FinishedRun) -> None:
    settings = json.loads(json.dumps(finished.settings))
    settings["optimizer"]["learning_rate"] = 2e-3
    settings["batch"]["global_batch_size"] = 8
    with pytest.raises(InputError) as refusal:
        drive(parse_config(settings))
    assert "optimizer.learning_rate was 0.001 and is 0.002" in str(refusal.value)
    assert "batch.global_batch_size was 16 and is 8" in str(refusal.value)


def test_a_dry_run_says_what_a_run_would_do(cluster: None, storage: Path) -> None:
    plan = dry_run(parse_config(small_run(storage, "dry")))
    assert (plan["steps"], plan["steps_per_epoch"], plan["episodes"]) == (20, 10, 306)
    assert (plan["train_pairs"], plan["eval_pairs"]) == (153, 41)
    assert plan["eval_pairs_by_set"] == {"bench": 12}
    assert plan["learning_rate"]["first_step"] == 0
    assert plan["learning_rate"]["after_warmup"] == 1e-3
    assert plan["config"]["cluster"]["num_workers"] == 2
    assert not (storage / "dry").exists()


def test_no_secret_is_written_down(finished: FinishedRun, storage: Path) -> None:
    """Not in checkpoints, MLflow, results, the token cache, nor in the logs of Ray's processes."""
    (node,) = ray.nodes()
    logs = Path(node["ObjectStoreSocketName"]).parents[1] / "logs"
    files = [path for folder in (storage, logs) for path in folder.rglob("*") if path.is_file()]
    assert {"result.json", "state.json", "mlflow.db"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, (name, path)


@pytest.mark.slow  # the unit tests of worker.loop, driver.finish and commands.exits have its parts
def test_a_loss_that_is_not_finite_ends_the_run_with_the_pairs(
    cluster: None, storage: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    settings = small_run(storage, "not-finite")
    settings["optimizer"] = {"learning_rate": 1e30, "schedule": "constant", "max_grad_norm": 0.0}
    settings["checkpoint"] = {"every_steps": 1}
    settings["cluster"]["num_workers"] = 1  # plain ranks show that all end together
    settings["data"]["eval"] = []
    recipe.write_text(json.dumps(settings))
    assert main(["--recipe", str(recipe)]) == 1
    printed = capfd.readouterr().out
    assert "of step 2 is not a finite number" in printed
    assert "pairs at fault: builtin:train:" in printed
    assert first_checkpoint(storage / "not-finite") is not None
    assert not (storage / "not-finite" / "result.json").exists()
    record = json.loads((storage / "not-finite" / "run.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db")
    assert client.get_run(record["mlflow_run_id"]).info.status == "FAILED"
