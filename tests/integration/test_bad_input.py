"""Bad input ends in one paragraph before anything is trained."""

import json
from pathlib import Path

import huggingface_hub
import mlflow
import pytest
from runs import small_run
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rm_ray.commands.train import main, parse_command
from rm_ray.driver.drive import drive
from rm_ray.errors import InputError

GOOD = {"prompt": "q", "chosen": "yes", "rejected": "no"}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def rows(path: Path, *lines: object) -> str:
    return write(path, "".join(json.dumps(line) + "\n" for line in lines))


def run(storage: Path, capsys: pytest.CaptureFixture, *options: str) -> str:
    """Make the command's one attempt; return why it is refused."""
    recipe = storage / "bad.yaml"
    recipe.write_text(json.dumps(small_run(storage, "bad")))
    with pytest.raises(InputError) as refusal:
        drive(parse_command(["--recipe", str(recipe), *options]).config)
    assert "\n" not in str(refusal.value)
    assert not list((storage / "bad").glob("checkpoint_*"))
    return str(refusal.value)


def test_a_missing_file(cluster, storage, capsys):
    error = run(storage, capsys, "--data.train", "no/such/file.jsonl")
    assert "'no/such/file.jsonl': no such file" in error


def test_the_command_prints_one_line_and_exits_with_2(cluster, storage, capfd, tmp_path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(json.dumps(small_run(storage, "bad")))
    assert main(["--recipe", str(recipe), "--data.train", "no/such/file.jsonl"]) == 2
    printed = capfd.readouterr().out
    assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1
    assert "'no/such/file.jsonl': no such file" in printed
    assert "Traceback" not in printed


def test_an_empty_file(cluster, storage, capsys, tmp_path):
    path = write(tmp_path / "empty.jsonl", "")
    assert "is empty: it has no rows" in run(storage, capsys, "--data.train", path)


def test_broken_json_with_its_line(cluster, storage, capsys, tmp_path):
    text = (json.dumps(GOOD) + "\n") * 3 + '{"chosen": "yes",\n'
    error = run(storage, capsys, "--data.train", write(tmp_path / "broken.jsonl", text))
    assert "broken.jsonl, line 4: not valid JSON" in error


def test_wrong_columns_with_those_found(cluster, storage, capsys, tmp_path):
    path = rows(tmp_path / "columns.jsonl", {"question": "q", "answer_a": "a"})
    error = run(storage, capsys, "--data.train", path)
    assert "must have the columns 'chosen' and 'rejected', or " in error
    assert "; it has: question, answer_a" in error


def test_nothing_left_after_refusal(cluster, storage, capsys, tmp_path):
    path = rows(tmp_path / "same.jsonl", *[{**GOOD, "rejected": "yes"}] * 3)
    error = run(storage, capsys, "--data.train", path)
    assert "all 3 rows were refused (3 identical responses)" in error
    assert "quarantine.jsonl" in error


def test_too_many_refused(cluster, storage, capsys, tmp_path):
    path = rows(tmp_path / "some.jsonl", *[GOOD] * 3, *[{**GOOD, "rejected": ""}] * 2)
    error = run(storage, capsys, "--data.train", path, "--data.max_refused_fraction", "0.3")
    assert "2 of 5 rows were refused (2 empty)" in error


def test_a_tokenizer_without_a_chat_template(cluster, storage, capsys, tmp_path):
    from rm_ray.data.sources.synthetic import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    error = run(storage, capsys, "--model.tokenizer", str(tmp_path / "bare"))
    assert "has no chat template" in error
    assert "data.chat_template" in error


def test_a_base_model_that_would_be_trained_from_random_weights(cluster, storage, capsys, tmp_path):
    folder = tmp_path / "compiled"
    config = LlamaConfig(
        vocab_size=800, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    options = ("--model.name_or_path", str(folder), "--model.tokenizer", "builtin")
    error = run(storage, capsys, *options, "--data.max_length", "257")
    assert "data.max_length is 257, but model.name_or_path" in error
    assert "has 256 positions" in error
    weights = load_file(folder / "model.safetensors")
    renamed = {f"_orig_mod.{name}": weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    error = run(storage, capsys, *options)
    assert "lacks 11 of its 11 weights" in error
    assert "'_orig_mod.', added by torch.compile" in error


def test_a_deleted_experiment(cluster, storage, capsys, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    options = ("--mlflow.tracking_uri", uri, "--mlflow.experiment", "gone")
    error = run(storage, capsys, *options)
    assert "mlflow.experiment 'gone' is deleted" in error
    assert "experiments restore" in error


def test_an_unknown_model_name(cluster, storage, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    options = ("--model.name_or_path", "no/such-model", "--model.tokenizer", "builtin")
    error = run(storage, capsys, *options)
    assert "model.name_or_path 'no/such-model' cannot be loaded" in error
    assert "HF_ENDPOINT" in error


def test_an_unknown_dataset_name(cluster, storage, capsys, monkeypatch):
    import datasets

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    error = run(storage, capsys, "--data.train", "no/such-dataset:train")
    assert "'no/such-dataset:train' is not a local file or folder, and cannot be loaded" in error


def test_more_workers_than_the_cluster_has(cluster, storage, capsys):
    error = run(storage, capsys, "--cluster.num_workers", "64")
    assert "64 x 1" in error
    assert "the cluster has 0 GPUs and" in error


def test_more_gpus_than_the_cluster_has(cluster, storage, capsys):
    error = run(storage, capsys, "--cluster.use_gpu", "True")
    assert "cluster.num_workers is 2 with one GPU each, but the cluster has 0 GPUs" in error


def test_liger_without_a_gpu(cluster, storage, capsys):
    assert "need a GPU" in run(storage, capsys, "--model.liger", "on")


def test_a_storage_path_that_cannot_be_written(cluster, storage, capsys, tmp_path):
    blocked = write(tmp_path / "file", "not a folder")
    error = run(storage, capsys, "--run.storage_path", f"{blocked}/runs")
    assert "cannot be written" in error
    assert "--run.storage_path" in error


def test_an_unknown_field_in_a_recipe(storage, capsys, tmp_path):
    recipe = write(tmp_path / "typo.yaml", "optimizer: {learning_rat: 1.0e-3}")
    assert main(["--recipe", recipe]) == 2
    assert "did you mean 'optimizer.learning_rate'?" in capsys.readouterr().out
