"""A run on a real Ray cluster: what it measures, leaves behind, and does when it is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
import ray
import torch
import torch.nn.functional as F
from runs import NUM_STEPS, SECRETS, FinishedRun, small_run
from safetensors.torch import load_file
from servers import MlflowServer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_ray.batches.plan import PlanSettings, Steps
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.commands.train import main
from rm_ray.config.recipe import parse_config
from rm_ray.data.sources.mixture import select
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.driver.drive import drive, dry_run
from rm_ray.errors import InputError
from rm_ray.runs.attempts import list_checkpoints
from rm_ray.runs.manifest import find_fault, read_manifest
from rm_ray.runs.startup import Startup
from rm_ray.storage import Storage
from rm_ray.supervisor.supervisor import supervise

ROOT = Path(__file__).resolve().parents[2]

TRAIN_METRICS = {
    "episode", "epoch", "train/rm/accuracy", "train/rm/loss", "train/rm/chosen_rewards",
    "train/rm/rejected_rewards", "train/rm/reward_margin", "train/rm/lr", "train/rm/grad_norm",
}  # fmt: skip
RESUMED = "resumed from the checkpoint of step"
EVAL_METRICS = {
    f"eval/rm/{name}"
    for name in (
        "accuracy", "loss", "chosen_rewards", "rejected_rewards", "reward_margin", "ties",
    )
}  # fmt: skip


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def exported_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "export" / "model.safetensors")


def test_result_json_says_what_was_done(finished: FinishedRun) -> None:
    result = json.loads((finished.folder / "result.json").read_text())
    assert result == finished.result
    assert (result["steps"], result["episodes"]) == (NUM_STEPS, 2 * 153)
    assert (result["train_pairs"], result["eval_pairs"], result["workers"]) == (153, 41, 2)
    assert result["metrics"].keys() >= TRAIN_METRICS | EVAL_METRICS
    assert result["pairs_per_second"] > 0
    assert result["tokens_per_second"] > 20 * result["pairs_per_second"]
    for path in ("export", "best_checkpoint", "last_checkpoint", "plots"):
        assert Path(result[path]).is_dir(), path


def test_held_out_metrics_equal_those_of_the_exported_model(finished: FinishedRun) -> None:
    """Each pair once, whatever the number of workers: scored again alone, by transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(finished.folder / "export")
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / "export")
    rows = select([SourceSpec.parse("builtin:test=41")], seed=1)[0].rows
    pairs = [row for i, row in enumerate(generate_pairs("test")) if i in set(rows.tolist())]
    rewards = {"chosen": [], "rejected": []}
    with torch.no_grad():
        for pair in pairs:
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


def test_the_learning_rate_runs_over_all_steps_once(finished: FinishedRun) -> None:
    rates = [r["metrics"]["train/rm/lr"] for r in history(finished.folder) if r["kind"] == "train"]
    expected = [1e-3 * (s / 4 if s < 4 else (NUM_STEPS - s) / (NUM_STEPS - 4)) for s in range(20)]
    assert rates == pytest.approx(expected)


def test_mlflow_has_every_metric_of_every_step_once(finished: FinishedRun) -> None:
    check_mlflow(finished.result, finished.settings)


def check_mlflow(result: dict, settings: dict) -> None:
    client = mlflow.MlflowClient(result["mlflow_tracking_uri"])
    run_id = result["mlflow_run_id"]
    for name in TRAIN_METRICS:
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        assert sorted(steps) == list(range(1, NUM_STEPS + 1)), name
    for name in EVAL_METRICS:
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        assert sorted(steps) == [5, 10, 15, 20], name
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.learning_rate"] == "0.001"
    assert run.data.params["run.seed"] == "1"
    artifacts = {item.path for item in client.list_artifacts(run_id)}
    assert {"config.yaml", "plots", "eval_samples"} <= artifacts
    samples = {item.path for item in client.list_artifacts(run_id, "eval_samples")}
    assert samples == {f"eval_samples/step-{step:06d}.json" for step in (5, 10, 15, 20)}
    plots = {item.path for item in client.list_artifacts(run_id, "plots")}
    assert plots == {"plots/training_over_episodes.png", "plots/training_over_hours.png"}


def test_samples_show_texts_and_rewards(finished: FinishedRun) -> None:
    samples = json.loads((finished.folder / "samples" / "step-000020.json").read_text())
    rows = select([SourceSpec.parse("builtin:test=41")], seed=1)[0].rows[:5].tolist()
    pairs = [row for i, row in enumerate(generate_pairs("test")) if i in rows]
    assert len(samples) == 5
    for sample, pair in zip(samples, pairs, strict=True):
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
    steps = Steps(num_pairs=153, settings=PlanSettings(global_batch_size=16,
                  tokens_per_micro_batch=700, epochs=2))  # fmt: skip
    for folder, state in zip(kept, states, strict=True):
        name, run_folder = folder.name, Storage.open(str(finished.folder))
        assert find_fault(run_folder, name, read_manifest(run_folder, name)) is None
        assert state["world_size"] == 2
        assert state["progress"]["episode"] == steps.episodes_before(state["progress"]["step"])
        parts = [f"{part}-{rank:05d}.safetensors" for part in ("rng", "slices") for rank in (0, 1)]
        for file in (*parts, "state.json", "history.jsonl", "data/trained_pairs.npz"):
            assert (folder / file).is_file(), file
        ledger = Ledger.read(folder / "data" / "trained_pairs.npz")
        assert ledger.counts.sum() == state["progress"]["episode"]


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
    assert plan["learning_rate"]["first_step"] == 0
    assert plan["learning_rate"]["after_warmup"] == 1e-3
    assert plan["config"]["cluster"]["num_workers"] == 2
    assert not (storage / "dry").exists()


def first_checkpoint(folder: Path) -> Path | None:
    return next((path.parent for path in folder.glob("checkpoint_*/manifest.json")), None)


def kill_a_worker_after_the_first_checkpoint(of: int, folder: Path, killed: list[int]) -> None:
    """Kill one of the workers that a process has started."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and first_checkpoint(folder) is None:
        time.sleep(0.05)
    for process in psutil.Process(of).children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)
            return


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on loopback."""
    server = MlflowServer(tmp_path)
    with server.running():
        yield server.address


def test_a_killed_worker_under_zero_3_goes_on_with_the_same_losses(
    finished: FinishedRun, storage: Path, mlflow_server: str
) -> None:
    settings = small_run(storage, "zero-3")
    settings["cluster"]["zero_stage"] = 3
    settings["mlflow"]["tracking_uri"] = mlflow_server
    killed: list[int] = []
    killer = threading.Thread(
        target=kill_a_worker_after_the_first_checkpoint,
        args=(os.getpid(), storage / "zero-3", killed),
    )
    killer.start()
    result = supervise(parse_config(settings), Startup())
    killer.join()
    assert len(killed) == 1
    check_mlflow(result, settings)
    ours, plain = history(storage / "zero-3"), history(finished.folder)
    assert [(r["step"], r["kind"]) for r in ours] == [(r["step"], r["kind"]) for r in plain]
    for mine, other in zip(ours, plain, strict=True):
        name = f"{mine['kind']}/rm/loss"
        assert mine["metrics"][name] == pytest.approx(other["metrics"][name], abs=1e-4)
    weights, expected = exported_weights(storage / "zero-3"), exported_weights(finished.folder)
    assert weights.keys() == expected.keys()
    assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in expected.items()}


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


def whole_checkpoints(folder: Path) -> list[str]:
    """Those that a run would go on from, the newest first."""
    run_folder = Storage.open(str(folder))
    names = list_checkpoints(run_folder)
    return [
        name
        for name in names
        if find_fault(run_folder, name, read_manifest(run_folder, name)) is None
    ]


def test_a_killed_worker_a_killed_driver_and_a_flipped_bit_change_nothing_in_the_end(
    finished: FinishedRun, storage: Path, tmp_path: Path
) -> None:
    """The command trains on without the worker; again, from before the damaged checkpoint.

    It is given in a folder of modules that are called like those of libraries, with a folder for
    temporary files that is too long for sockets, on a terminal of ASCII; and the second time by
    another path to its storage.
    """
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(small_run(storage, "driver-killed")))
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--recipe", str(recipe)]
    job_folder = tmp_path / ("job" * 30)
    job_folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"TMPDIR": str(job_folder), "PYTHONIOENCODING": "ascii"}
    elsewhere = tmp_path / "elsewhere"
    for module in ("peft/__init__", "datasets/__init__", "mlflow/__init__", "types", "random"):
        path = elsewhere / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise ImportError('this is not the library')")
    (tmp_path / "linked").symlink_to(storage)
    folder = storage / "driver-killed"
    seen: set[str] = set()
    with (tmp_path / "first.log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=elsewhere)
        killed: list[int] = []
        kill_a_worker_after_the_first_checkpoint(driver.pid, folder, killed)
        assert len(killed) == 1
        said = tmp_path / "first.log"
        while driver.poll() is None and (len(seen) < 2 or RESUMED not in said.read_text()):
            seen.update(whole_checkpoints(folder))
            time.sleep(0.02)
        children = psutil.Process(driver.pid).children(recursive=True)
        trainers = [child for child in children if "Train" in " ".join(child.cmdline())]
        driver.kill()
        driver.wait()
        assert not psutil.wait_procs(trainers, timeout=60)[1], "they would commit once more"
    assert not (folder / "result.json").exists()
    assert RESUMED in said.read_text()
    damaged = folder / whole_checkpoints(folder)[0] / "slices-00001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    again = subprocess.run(
        [*command, "--run.storage_path", str(tmp_path / "linked")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=elsewhere,
        check=False,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Traceback" not in again.stdout + again.stderr
    assert (
        f"{damaged.parent.name} is not used: slices-00001.safetensors does not have" in again.stdout
    )
    assert RESUMED in again.stdout
    assert "run 'driver-killed': 20 steps, 306 pairs" in again.stdout
    assert_same_outcome(folder, finished.folder)
    result = json.loads((folder / "result.json").read_text())
    check_mlflow(result, small_run(storage, "driver-killed"))
    client = mlflow.MlflowClient(result["mlflow_tracking_uri"])
    experiment = client.get_experiment_by_name("tests")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_name for run in runs].count("driver-killed") == 1
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive, "a killed driver leaves no process of its local Ray behind"


def assert_same_outcome(folder: Path, expected: Path) -> None:
    """Weights bit for bit, and every metric of every step."""
    weights, expected_weights = exported_weights(folder), exported_weights(expected)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected_weights[name]), name
    ours, theirs = history(folder), history(expected)
    assert [(r["step"], r["kind"]) for r in ours] == [(r["step"], r["kind"]) for r in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in mine["metrics"]:
            if not name.startswith("perf/"):
                assert mine["metrics"][name] == other["metrics"][name], (mine["step"], name)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_pairs(
    cluster: None, storage: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    settings = small_run(storage, "not-finite")
    settings["optimizer"] = {"learning_rate": 1e30, "schedule": "constant", "max_grad_norm": 0.0}
    settings["checkpoint"] = {"every_steps": 1}
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
