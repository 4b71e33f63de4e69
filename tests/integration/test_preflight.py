"""The preflight's command on a real Ray, with real servers beside it."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import mlflow
import pytest
from hub_server import TOKEN, serving
from runs import small_run
from servers import MlflowServer

from rm_ray.commands.preflight import main
from rm_ray.config.recipe import parse_config
from rm_ray.preflight import summary
from rm_ray.preflight.resolve import resolve_run
from rm_ray.storage import Storage

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def preflight(storage: Path, capfd: pytest.CaptureFixture, *options: str) -> tuple[int, str]:
    """Run the command on the small run; return its status and what it prints."""
    recipe = storage / "preflight.yaml"
    recipe.write_text(json.dumps(small_run(storage, "not-begun")))
    capfd.readouterr()
    status = main(["--recipe", str(recipe), *options])
    assert not (storage / "not-begun").exists()
    assert not list(storage.glob(".preflight-*"))
    return status, capfd.readouterr().out


def test_a_run_that_can_begin(cluster, storage, capfd):
    status, page = preflight(storage, capfd, "--measure", "1", "--measure_network")
    assert status == 0
    assert "FAILED" not in page
    lines = [" ".join(line.split()) for line in page.splitlines()]
    (network,) = [line for line in lines if line.startswith("ok network")]
    assert "2 workers on 1 machine: " in network
    assert " GB/s within a machine; " in network
    assert "between machines" not in network
    assert any(line.startswith("ok storage") and "on 1 machine" in line for line in lines)
    assert "pairs: 153 to train on, 41 held out, 0 refused" in lines
    assert "steps: 20 of up to 16 pairs; 306 episodes, 2 epochs, on 2 workers" in lines
    assert any(line.startswith("packed: ") and line.endswith("<- these settings") for line in lines)
    assert any(line.startswith("0 no none ") and line.endswith(" these settings") for line in lines)
    assert any(line.startswith("time: ") and "worker-hours" in line for line in lines)


def test_the_same_as_json(cluster, storage, capfd):
    status, page = preflight(storage, capfd, "--json", "--pairs_per_second", "0.5")
    found = json.loads(page)
    assert status == 0
    assert {check["outcome"] for check in found["checks"]} == {"ok"}
    assert (found["pairs"], found["steps"], found["workers"]) == (153, 20, 2)
    assert sum(found["histogram"]["counts"]) == 153
    assert found["hours"] == 306 / 0.5 / 3600
    assert found["worker_hours"] == 2 * found["hours"]
    layouts = found["layouts"]
    assert layouts["packed"]["computed"] < layouts["padded"]["computed"]
    (chosen,) = [way for way in found["memory"] if way["is_chosen"]]
    assert (chosen["zero_stage"], chosen["offload"]) == (0, "none")
    assert chosen["device"] == max(
        m["host"] + sum(list(m.values())[1:-1]) for m in chosen["moments"]
    )


def test_a_model_for_64_gpus_is_judged_without_them(cluster, storage, capfd, tmp_path):
    model = tmp_path / "config.json"
    model.write_text(json.dumps(LLAMA_8B))
    status, page = preflight(
        storage, capfd, "--json", "--gpu_memory_gb", "80", "--model.name_or_path", str(model),
        "--model.tokenizer", "builtin", "--model.dtype", "bfloat16", "--cluster.num_workers", "64",
        "--cluster.use_gpu", "True", "--cluster.zero_stage", "3",
    )  # fmt: skip
    found = json.loads(page)
    assert status == 0
    outcomes = {check["name"]: check["outcome"] for check in found["checks"]}
    assert outcomes["cluster"] == outcomes["GPUs"] == "warning"
    assert outcomes["GPU memory"] == "ok"
    assert found["parameters"] == 7_504_928_768
    assert found["workers"] == 64
    fits = {
        (way["zero_stage"], way["offload"]): way["fits"]
        for way in found["memory"]
        if not way["gradient_checkpointing"]
    }
    # 74 GB are 9.9 bytes a parameter: DDP takes 18, ZeRO-1 10 and a shard, ZeRO-2 2 and a shard.
    assert [fits[stage, "none"] for stage in range(4)] == [False, False, True, True]
    (best,) = [way for way in found["memory"] if way["is_recommended"]]
    assert (best["zero_stage"], best["offload"], best["gradient_checkpointing"]) == (
        2,
        "none",
        False,
    )


def test_a_storage_that_cannot_be_written_fails_before_anything_is_tokenised(
    cluster, storage, capfd, tmp_path
):
    (tmp_path / "file").write_text("no folder")
    status, page = preflight(storage, capfd, "--run.storage_path", f"{tmp_path}/file/runs")
    assert status == 1
    assert "FAILED   storage" in page
    assert "pairs:" not in page


def test_too_large_a_cluster_fails_and_wrong_input_is_refused(cluster, storage, capfd):
    status, page = preflight(storage, capfd, "--cluster.num_workers", "64")
    assert status == 1
    assert "FAILED   cluster" in page
    assert "on 64 workers" in page
    status, page = preflight(storage, capfd, "--data.train", "no/such/file.jsonl")
    assert status == 2
    assert "ok       storage" in page
    assert "error: data source 'no/such/file.jsonl': no such file" in page


def test_mlflow_and_the_hub_are_asked(
    cluster, storage, mlflow_server, capfd, tmp_path, monkeypatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    services = ["--mlflow.registered_model", "rewards", "--hub.repo_id", "someone/rewards"]
    options = [*services, "--mlflow.tracking_uri", mlflow_server, "--mlflow.experiment", "new"]
    with serving(tmp_path / "hub") as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        status, page = preflight(storage, capfd, *options)
    assert status == 0
    assert f"ok       MLflow          {mlflow_server} answers; experiment 'new' will" in page
    assert "ok       Hub             someone/rewards will be created; 'someone' may write" in page
    away = MlflowServer(tmp_path).address
    status, page = preflight(storage, capfd, *services, "--mlflow.tracking_uri", away)
    assert status == 0  # training would go on without them
    assert "WARNING  MLflow" in page
    assert "WARNING  Hub" in page


def test_a_deleted_experiment_fails(cluster, storage, capfd, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    options = ("--mlflow.tracking_uri", uri, "--mlflow.experiment", "gone")
    status, page = preflight(storage, capfd, *options)
    assert status == 1
    assert "FAILED   MLflow          mlflow.experiment 'gone' is deleted" in page


def test_every_training_begins_with_the_same_in_short(cluster, storage, monkeypatch):
    said: list[str] = []
    settings: dict[str, Any] = small_run(storage, "in-short")
    config = parse_config(settings)
    resolved = resolve_run(config, Storage.open(str(storage)), config.cluster)
    monkeypatch.setattr(summary.logger, "info", lambda form, *values: said.append(form % values))
    monkeypatch.setattr(summary.logger, "warning", said.append)
    summary.log_summary(resolved)
    steps, memory = said
    assert steps.startswith("20 steps over 153 pairs of ")
    assert "packed computes" in steps
    assert memory.startswith("memory of a worker, estimated: 0.0")


def test_a_range_of_workers_is_judged_by_the_fewest(cluster, storage, capfd):
    options = ("--gpu_memory_gb", "80", "--cluster.num_workers", "2-8", "--cluster.zero_stage", "3")
    status, page = preflight(storage, capfd, *options)
    assert status == 0
    assert "on 8 workers" in page
    assert "memory of a GPU, estimated for 2 workers, the fewest:" in page
    assert "not the cluster of this run, which has 8 workers" in page
