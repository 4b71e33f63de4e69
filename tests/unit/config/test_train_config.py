import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rm_ray.commands.train import parse_command
from rm_ray.config.recipe import parse_config, read_recipe
from rm_ray.config.train_config import (
    BatchConfig,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    HubConfig,
    MlflowConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    flatten,
)
from rm_ray.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))

NOTHING_AT_ITS_DEFAULT = TrainConfig(
    run=RunConfig(name="other-run", storage_path="/mnt/runs", seed=7, deterministic=True),
    data=DataConfig(
        train=("a.jsonl=0.5", "org/name:train=400"),
        eval=("b.parquet",),
        max_length=512,
        max_prompt_length=256,
        over_length="truncate",
        max_refused_fraction=0.1,
        drop_overlap=True,
        chat_template="{{ messages }}",
        template_date="2026-11-28",
        columns=("prompt=question.full_text",),
        ignore_columns=("images",),
    ),
    model=ModelConfig(
        name_or_path="org/model",
        revision="main",
        tokenizer="org/tokenizer",
        dtype="bfloat16",
        attention="eager",
        gradient_checkpointing=True,
        liger="off",
    ),
    batch=BatchConfig(global_batch_size=256, tokens_per_micro_batch=1024, layout="padded"),
    optimizer=OptimizerConfig(
        learning_rate=1e-5,
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.1,
        schedule="cosine",
        warmup_steps=3,
        max_grad_norm=0.0,
        max_skipped_steps=2,
        epochs=2,
        max_episodes=100,
    ),
    cluster=ClusterConfig(
        num_workers=4,
        use_gpu=True,
        cpus_per_worker=2,
        zero_stage=3,
        offload="optimizer",
        zero_secondary_partition=True,
    ),
    evaluation=EvaluationConfig(every_steps=5, at_end=False, sample_rows=2),
    checkpoint=CheckpointConfig(
        every_steps=5, keep=3, keep_best_by="eval/rm/loss", storage_patience_s=5.0
    ),
    mlflow=MlflowConfig(
        tracking_uri="http://127.0.0.1:5000", experiment="other", registered_model="rewards"
    ),
    hub=HubConfig(
        repo_id="me/rewards", private=False, every="best", revision_prefix="a-", patience_s=5.0
    ),
)


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def message_of_wrong(settings: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        parse_config(settings, origin="recipe.yaml")
    return str(caught.value)


@pytest.mark.parametrize("config", [TrainConfig(), NOTHING_AT_ITS_DEFAULT])
def test_a_config_survives_a_dictionary_and_json(config: TrainConfig):
    assert parse_config(config.to_dict()) == config
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config
    assert parse_config(config.to_json()) == config


def test_a_config_as_json_is_what_json_reads_back():
    settings = NOTHING_AT_ITS_DEFAULT.to_json()

    assert json.loads(json.dumps(settings)) == settings
    assert settings["data"]["train"] == ["a.jsonl=0.5", "org/name:train=400"]


def test_the_round_trip_covers_every_field():
    default, other = flatten(TrainConfig().to_dict()), flatten(NOTHING_AT_ITS_DEFAULT.to_dict())

    same = {name for name in default if default[name] == other[name]}

    assert same == set()


def test_what_a_dictionary_leaves_out_keeps_its_default():
    config = parse_config({"optimizer": {"epochs": 3}})

    assert config.optimizer == OptimizerConfig(epochs=3)
    assert config == TrainConfig(optimizer=OptimizerConfig(epochs=3))


def test_flatten_joins_sections_and_fields_with_points():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }


@pytest.mark.parametrize(
    ("settings", "unknown", "nearest"),
    [
        ({"optimiser": {}}, "optimiser", "optimizer"),
        ({"optimizer": {"learnin_rate": 1e-4}}, "optimizer.learnin_rate", "learning_rate"),
        ({"data": {"max_lenght": 5}}, "data.max_lenght", "data.max_length"),
        ({"batch": {"global_batchsize": 5}}, "batch.global_batchsize", "batch.global_batch_size"),
    ],
)
def test_an_unknown_field_names_the_nearest(settings: dict[str, Any], unknown: str, nearest: str):
    message = message_of_wrong(settings)

    assert message.startswith(f"recipe.yaml: unknown field '{unknown}'; did you mean '")
    assert nearest in message.split("did you mean")[1]


def test_an_unknown_field_like_no_other_lists_those_there_are():
    message = message_of_wrong({"checkpoint": {"zzz": 1}})

    known = "every_steps, keep, keep_best_by, storage_patience_s"
    assert message == f"recipe.yaml: unknown field 'checkpoint.zzz'; known: {known}"


def test_a_section_that_holds_no_fields_is_refused():
    assert message_of_wrong({"data": 3}) == "recipe.yaml: 'data' holds fields, got 3"


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("run", "seed", "three"),
        ("run", "seed", 1.5),
        ("run", "name", 3),
        ("data", "train", 5),
        ("data", "over_length", "cut"),
        ("data", "max_length", None),
        ("model", "dtype", "float16"),
        ("model", "gradient_checkpointing", "maybe"),
        ("batch", "global_batch_size", [1]),
        ("batch", "layout", "packed-tight"),
        ("optimizer", "learning_rate", "fast"),
        ("optimizer", "betas", [0.9]),
        ("optimizer", "schedule", "stairs"),
        ("optimizer", "epochs", 1.5),
        ("cluster", "zero_stage", 4),
        ("cluster", "offload", "disk"),
        ("evaluation", "at_end", "sometimes"),
    ],
)
def test_a_wrong_type_names_its_field_and_value(section: str, field: str, value: Any):
    message = message_of_wrong({section: {field: value}})

    assert f"{section}.{field}" in message
    shown = value[0] if field == "betas" else value
    assert str(shown) in message.split("got")[-1]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("run", "name", ""),
        ("run", "name", "a/b"),
        ("run", "name", ".hidden"),
        ("run", "storage_path", ""),
        ("run", "seed", -1),
        ("data", "train", []),
        ("data", "max_length", 1),
        ("data", "max_prompt_length", 0),
        ("data", "max_refused_fraction", 1.5),
        ("data", "max_refused_fraction", -0.1),
        ("batch", "global_batch_size", 0),
        ("batch", "tokens_per_micro_batch", 0),
        ("optimizer", "learning_rate", 0),
        ("optimizer", "learning_rate", float("nan")),
        ("optimizer", "betas", [0.9, 1.0]),
        ("optimizer", "eps", 0),
        ("optimizer", "weight_decay", -0.1),
        ("optimizer", "warmup_steps", -1),
        ("optimizer", "max_grad_norm", -1),
        ("optimizer", "epochs", 0),
        ("optimizer", "max_episodes", 0),
        ("cluster", "num_workers", 0),
        ("cluster", "cpus_per_worker", 0),
        ("cluster", "offload", "optimizer"),
        ("evaluation", "every_steps", -1),
        ("evaluation", "sample_rows", -1),
        ("checkpoint", "every_steps", -1),
        ("checkpoint", "keep", 1),
        ("checkpoint", "keep_best_by", "accuracy"),
        ("hub", "repo_id", "no-namespace"),
        ("hub", "repo_id", "a/b/c"),
        ("hub", "every", "best"),
        ("hub", "revision_prefix", "a/b"),
        ("hub", "patience_s", -1.0),
    ],
)
def test_a_value_out_of_range_names_its_field_and_value(section: str, field: str, value: Any):
    message = message_of_wrong({section: {field: value}})

    assert f"{section}.{field} must be " in message
    if value != []:
        numbers = tuple(value) if isinstance(value, list) else value
        kept = type(getattr(getattr(TrainConfig(), section), field))
        shown = float(numbers) if kept is float else numbers
        assert message.endswith(f"got {shown!r}")


def test_an_infinite_learning_rate_is_refused():
    settings = {"optimizer": {"learning_rate": float("inf")}}

    assert "optimizer.learning_rate must be " in message_of_wrong(settings)


@pytest.mark.parametrize("field", ["epochs", "learning_rate", "warmup_steps"])
def test_a_boolean_is_not_a_number(field: str):
    message = message_of_wrong({"optimizer": {field: True}})

    assert f"optimizer.{field}" in message
    assert message.endswith("got True")


def test_every_wrong_value_is_named_at_once():
    message = message_of_wrong({"run": {"seed": -1}, "optimizer": {"epochs": "all"}})

    assert "run.seed must be from 0 to 4294967295, got -1" in message
    assert "optimizer.epochs" in message


def test_a_dataclass_built_directly_is_checked_too():
    with pytest.raises(InputError, match=r"batch\.global_batch_size must be at least 1, got 0"):
        BatchConfig(global_batch_size=0)


def test_fields_that_contradict_each_other_are_refused():
    warm = message_of_wrong({"optimizer": {"schedule": "constant", "warmup_steps": 3}})
    assert "optimizer.warmup_steps" in warm
    assert "constant_with_warmup" in warm

    offload = message_of_wrong({"cluster": {"zero_stage": 2, "offload": "all"}})
    assert "cluster.offload" in offload
    assert "at least 3 (it is 2)" in offload

    for cluster in ({"zero_stage": 2}, {"zero_stage": 3, "offload": "all"}):
        second = message_of_wrong({"cluster": {**cluster, "zero_secondary_partition": True}})
        assert "cluster.zero_secondary_partition" in second
        assert f"stage {cluster['zero_stage']}" in second

    settings = {"run": {"deterministic": True}, "cluster": {"num_workers": "2-8"}}
    workers = message_of_wrong(settings)
    assert "cluster.num_workers" in workers and "run.deterministic" in workers
    for number in (8, "8", "8-8", None):
        parse_config({"run": {"deterministic": True}, "cluster": {"num_workers": number}})

    best = {"data": {"eval": []}, "checkpoint": {"keep_best_by": "eval/rm/loss"}}
    assert "checkpoint.keep_best_by" in message_of_wrong(best)


def test_offload_is_accepted_from_the_stage_that_has_something_to_offload():
    for stage, offload in ((1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")):
        settings = {"cluster": {"zero_stage": stage, "offload": offload}}
        assert parse_config(settings).cluster.offload == offload


def test_scientific_notation_without_a_point_is_a_number_in_yaml(tmp_path: Path):
    recipe = write_recipe(tmp_path, "optimizer:\n  learning_rate: 3e-6\n  eps: 1E-7\n")
    assert isinstance(yaml.safe_load(recipe.read_text())["optimizer"]["learning_rate"], str)

    optimizer = read_recipe(recipe).optimizer

    assert optimizer.learning_rate == 3e-6
    assert optimizer.eps == 1e-7


def test_lists_in_yaml_become_the_tuples_of_the_config(tmp_path: Path):
    recipe = write_recipe(
        tmp_path, "data:\n  train: [a.jsonl=0.5, b]\noptimizer:\n  betas: [0.8, 0.9]\n"
    )

    config = read_recipe(recipe)

    assert config.data.train == ("a.jsonl=0.5", "b")
    assert config.optimizer.betas == (0.8, 0.9)


def test_an_empty_recipe_is_the_default(tmp_path: Path):
    assert read_recipe(write_recipe(tmp_path, "# nothing set\n")) == TrainConfig()


def test_a_wrong_recipe_is_named_in_the_error(tmp_path: Path):
    recipe = write_recipe(tmp_path, "run:\n  sead: 3\n")

    with pytest.raises(InputError) as caught:
        read_recipe(recipe)

    assert str(caught.value) == f"{recipe}: unknown field 'run.sead'; did you mean 'run.seed'?"


def test_a_missing_recipe_names_those_beside_it(tmp_path: Path):
    there = write_recipe(tmp_path, "")

    with pytest.raises(InputError) as caught:
        read_recipe(tmp_path / "missing.yaml")

    assert "missing.yaml: no such file" in str(caught.value)
    assert str(there) in str(caught.value)


def test_a_folder_given_as_recipe_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="--recipe"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"), [("run: [", "not valid YAML"), ("- a\n- b\n", "must hold sections")]
)
def test_a_recipe_that_is_not_yaml_or_holds_no_sections_is_refused(
    tmp_path: Path, text: str, told: str
):
    with pytest.raises(InputError, match=told):
        read_recipe(write_recipe(tmp_path, text))


def test_there_are_recipes():
    assert ROOT / "jobs" / "recipes" / "debug.yaml" in RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.name for path in RECIPES])
def test_every_recipe_loads_and_keeps_what_it_says(recipe: Path):
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    settings = flatten(read_recipe(recipe).to_dict())
    loaded = {name: plain(value) for name, value in settings.items()}

    for name, value in flatten(yaml.safe_load(recipe.read_text())).items():
        given = value if not isinstance(loaded[name], float) else float(value)
        assert loaded[name] == given, name


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path: Path):
    recipe = write_recipe(
        tmp_path, "optimizer:\n  learning_rate: 1e-3\n  epochs: 4\n  betas: [0.8, 0.9]\n"
    )
    options = ["--optimizer.learning_rate", "5e-4", "--data.train", "a.jsonl", "b=3"]

    for arguments in (
        ["--recipe", str(recipe), *options],
        [*options, f"--recipe={recipe}"],
    ):
        command = parse_command(arguments)

        assert command.recipe == recipe
        assert command.config == TrainConfig(
            data=DataConfig(train=("a.jsonl", "b=3")),
            optimizer=OptimizerConfig(learning_rate=5e-4, epochs=4, betas=(0.8, 0.9)),
        )


def test_without_arguments_the_command_is_the_default():
    command = parse_command([])

    assert command.config == TrainConfig()
    assert command.recipe is None
    assert command.dry_run is False


def test_every_field_can_be_set_from_the_command_line():
    def words(value: Any) -> list[str]:
        return [str(v) for v in value] if isinstance(value, tuple) else [str(value)]

    settings = flatten(NOTHING_AT_ITS_DEFAULT.to_dict())
    arguments = [word for name, value in settings.items() for word in (f"--{name}", *words(value))]

    command = parse_command([*arguments, "--dry_run"])

    assert command.config == NOTHING_AT_ITS_DEFAULT
    assert command.dry_run is True


def test_options_may_be_written_with_dashes():
    assert parse_command(["--dry-run", "--batch.global-batch-size", "3"]).config == TrainConfig(
        batch=BatchConfig(global_batch_size=3)
    )


def test_the_held_out_sources_can_be_emptied_from_the_command_line():
    assert parse_command(["--data.eval"]).config.data.eval == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--optimizer.learnin_rate", "1"], "--optimizer.learning_rate"),
        (["--optimizer.epochs", "1.5"], "--optimizer.epochs"),
        (["--cluster.zero_stage", "4"], "--cluster.zero_stage"),
        (["--run.seed", "-1"], "run.seed must be from 0 to"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_names_the_option(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        parse_command(arguments)

    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert told in printed.out + printed.err


def test_a_wrong_recipe_is_an_input_error_of_the_command(tmp_path: Path):
    recipe = write_recipe(tmp_path, "optimizer:\n  epochs: none\n")

    with pytest.raises(InputError, match=r"optimizer\.epochs"):
        parse_command(["--recipe", str(recipe)])


def test_help_shows_every_field(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse_command(["--help"])

    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert [name for name in flatten(TrainConfig().to_dict()) if f"--{name}" not in shown] == []
    assert "Peak learning rate." in shown


def test_another_attention_is_refused_where_pairs_are_packed():
    with pytest.raises(InputError, match=r"model.attention must be 'sdpa' under .*, got 'eager'"):
        parse_config({"model": {"attention": "eager"}})
    settings = {"model": {"attention": "eager"}, "batch": {"layout": "padded"}}
    assert parse_config(settings).model.attention == "eager"


@pytest.mark.parametrize(
    ("section", "field", "uri"),
    [
        ("run", "storage_path", "s3://AKIA:hunter2@bucket/runs"),
        ("mlflow", "tracking_uri", "http://ana:hunter2@mlflow.example.com:5000"),
        ("mlflow", "tracking_uri", "https://hunter2@mlflow.example.com:5000"),
        ("mlflow", "tracking_uri", "postgresql://ana:hunter2@db.example.com/mlflow"),
        ("run", "storage_path", "s3://bucket/runs?access_key=AKIA&secret_key=hunter2"),
        ("run", "storage_path", "s3://bucket/runs?region=eu&access_key=hunter2"),
        ("run", "storage_path", "abfs://runs@account/x?sig=hunter2"),
        ("data", "train", ["https://hunter2@example.com/pairs.jsonl"]),
        ("data", "train", ["https://example.com/pairs.jsonl?X-Amz-Signature=hunter2"]),
        ("data", "train", ["/there/is/pairs.jsonl", "https://example.com/p.jsonl?TOKEN=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl?password=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl?apikey=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl?accessToken=hunter2"]),
        ("mlflow", "tracking_uri", "postgresql://db/mlflow?sslpassword=hunter2"),
        ("data", "train", ["https://ana:hunter2@example.com/pairs.jsonl"]),
        ("data", "eval", ["https://ana:hunter2@example.com/pairs.jsonl"]),
        ("data", "eval", ["simplecache::https://ana:hunter2@example.com/pairs.jsonl"]),
        ("data", "eval", ["zip://*.jsonl::https://hunter2@example.com/pairs.zip"]),
        ("data", "eval", ["https://example.com/pairs.jsonl#token=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl;token=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl?access%5Ftoken=hunter2"]),
        ("mlflow", "tracking_uri", "postgresql://ana:a/hunter2@db/mlflow"),
        ("mlflow", "tracking_uri", "postgresql://ana:a#hunter2@db/mlflow"),
        ("mlflow", "tracking_uri", "postgresql://ana:a?hunter2@db/mlflow"),
        ("model", "name_or_path", "https://ana:hunter2@example.com/model"),
        ("model", "tokenizer", "https://example.com/model?token=hunter2"),
    ],
)
def test_a_password_is_refused_and_not_repeated(section: str, field: str, uri: Any):
    message = message_of_wrong({section: {field: uri}})
    assert f"{section}.{field} must hold no password" in message
    assert "environment" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("section", "field", "uri"),
    [
        ("run", "storage_path", "s3://bucket/runs?region=eu-west-1&scheme=https"),
        ("run", "storage_path", "abfs://runs@account.dfs.core.windows.net/x"),
        ("run", "storage_path", "sftp://ana@example.com/runs"),
        ("run", "storage_path", "/runs/a:b@c?token=x"),
        ("mlflow", "tracking_uri", "postgresql://ana@db.example.com/mlflow"),
        ("mlflow", "tracking_uri", "http://mlflow.example.com:5000?design=1"),
        ("data", "train", ("https://example.com/pairs.jsonl?version=2",)),
        ("data", "train", ("https://example.com:8080/pairs@v2.jsonl",)),
        ("data", "train", ("simplecache::https://example.com:8080/pairs@v2.jsonl",)),
        ("data", "train", ("hf://datasets/ana/pairs@main/data.parquet",)),
        ("run", "storage_path", "hdfs://namenode:8020/user/ana@example"),
    ],
)
def test_a_uri_without_a_secret_may_have_a_user_or_a_query(section: str, field: str, uri: Any):
    config = parse_config({section: {field: uri}})

    assert getattr(getattr(config, section), field) == uri


def test_a_uri_that_cannot_be_read_is_not_repeated():
    message = message_of_wrong({"run": {"storage_path": "s3://ana:hunter2@[bad/x"}})
    assert "run.storage_path must be a URI" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("name", ["mlflow.db", "token_cache", "mlflow_artifacts", "evaluations"])
def test_a_run_is_not_called_like_what_lies_beside_it(name: str):
    assert f"got '{name}'" in message_of_wrong({"run": {"name": name}})


@pytest.mark.parametrize(
    ("text", "name", "lines"),
    [
        ("optimizer:\n  eps: 1\nrun:\n  name: a\noptimizer:\n  epochs: 2\n", "optimizer", (1, 5)),
        ("run: {name: a}\noptimizer:\n  epochs: 2\n\n  epochs: 3\n", "epochs", (3, 5)),
    ],
)
def test_a_name_given_twice_in_a_recipe_is_refused_with_both_lines(
    text: str, name: str, lines: tuple[int, int], tmp_path: Path
):
    with pytest.raises(InputError) as caught:
        read_recipe(write_recipe(tmp_path, text))

    first, second = lines
    assert f"'{name}' stands twice, in line {first} and in line {second}" in str(caught.value)


def test_an_empty_section_is_its_defaults_and_one_source_is_a_list_of_it(tmp_path: Path):
    recipe = write_recipe(tmp_path, "data:\n  train: a.jsonl\n  eval: b.jsonl\noptimizer:\n")

    config = read_recipe(recipe)

    assert config.data.train == ("a.jsonl",)
    assert config.data.eval == ("b.jsonl",)
    assert config.optimizer == TrainConfig().optimizer


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_with_a_byte_order_mark_is_read(encoding: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("mlflow:\n  experiment: é\n".encode(encoding))

    assert read_recipe(path).mlflow.experiment == "é"


def test_a_recipe_of_the_wrong_type_names_the_field(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.train: Input should be a list, got 5"):
        read_recipe(write_recipe(tmp_path, "data:\n  train: 5\n"))


@pytest.mark.parametrize(
    ("train", "given", "held_out"),
    [
        (["builtin:train"], None, ("builtin:test",)),
        (["builtin=0.5", "builtin:train=3"], None, ("builtin:test",)),
        (["mine.jsonl"], None, ()),
        (["builtin:train", "mine.jsonl"], None, ()),
        (["builtin.jsonl"], None, ()),
        (["mine.jsonl"], ["builtin:test"], ("builtin:test",)),
        (["builtin:train"], [], ()),
    ],
)
def test_own_pairs_are_not_evaluated_on_the_built_in_ones_unasked(
    train: list[str], given: list[str] | None, held_out: tuple[str, ...]
):
    assert parse_config({"data": {"train": train, "eval": given}}).data.held_out == held_out


def test_own_pairs_given_on_the_command_line_have_no_built_in_evaluation():
    assert parse_command(["--data.train", "mine.jsonl"]).config.data.held_out == ()
    assert parse_command([]).config.data.held_out == ("builtin:test",)


def test_the_best_by_evaluation_is_refused_where_own_pairs_have_none():
    settings = {"data": {"train": ["mine.jsonl"]}, "checkpoint": {"keep_best_by": "eval/rm/loss"}}

    with pytest.raises(InputError, match=r"keep_best_by.*data\.eval names no held-out pairs"):
        parse_config(settings)


def test_columns_in_a_recipe_are_a_mapping_or_a_list(tmp_path: Path):
    as_mapping = write_recipe(tmp_path, "data: {columns: {prompt: question, chosen: response_j}}")
    assert read_recipe(as_mapping).data.columns == ("prompt=question", "chosen=response_j")

    as_list = write_recipe(tmp_path, "data: {columns: [prompt=question, chosen=response_j]}")
    assert read_recipe(as_list).data.columns == ("prompt=question", "chosen=response_j")

    command = parse_command(["--data.columns", "prompt=question", "chosen=a=b"])
    assert command.config.data.rules.columns == {"prompt": "question", "chosen": "a=b"}


@pytest.mark.parametrize(
    ("columns", "ignored", "field"),
    [
        (("answer=question",), (), "data.columns must be a list of PART=COLUMN"),
        (("question",), (), "data.columns must be"),
        (("prompt=",), (), "data.columns must be"),
        (("prompt=a", "prompt=b"), (), "data.columns must be"),
        (("prompt=a.text",), ("a",), "data.ignore_columns must be other columns"),
    ],
)
def test_columns_of_no_part_or_of_two_are_refused(
    columns: tuple[str, ...], ignored: tuple[str, ...], field: str
):
    with pytest.raises(InputError, match=field):
        DataConfig(columns=columns, ignore_columns=ignored)


@pytest.mark.parametrize("day", ["28.11.2026", "2026-13-01", "20261128", ""])
def test_a_template_date_is_written_as_iso_does(day: str):
    with pytest.raises(InputError, match=r"data\.template_date must be a date such as 2026-11-28"):
        DataConfig(template_date=day)


def test_a_date_without_quotes_is_its_text(tmp_path: Path):
    for day in ("2024-01-02", "'2024-01-02'"):
        recipe = write_recipe(tmp_path, f"data:\n  template_date: {day}\n")
        assert read_recipe(recipe).data.template_date == "2024-01-02"


@pytest.mark.parametrize("day", ["2024-01-02 10:00:00", "2024", "2024-13-45"])
def test_a_date_without_quotes_that_is_none_is_refused(day: str, tmp_path: Path):
    with pytest.raises(InputError, match="recipe"):
        read_recipe(write_recipe(tmp_path, f"data:\n  template_date: {day}\n"))


def test_one_text_is_a_list_of_it_and_an_empty_list_is_its_default(tmp_path: Path):
    one = write_recipe(tmp_path, "data:\n  columns: prompt=question\n  ignore_columns: id\n")
    assert read_recipe(one).data == DataConfig(columns=("prompt=question",), ignore_columns=("id",))

    empty = write_recipe(tmp_path, "data:\n  train:\n  eval:\n  columns:\n  ignore_columns:\n")
    assert read_recipe(empty) == TrainConfig()


@pytest.mark.parametrize("text", ["[" * 5_000, "{a: " * 5_000 + "1" + "}" * 5_000])
def test_a_recipe_that_nests_without_end_is_refused_in_a_line(text: str, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        read_recipe(write_recipe(tmp_path, text))

    assert "must hold sections with fields" in str(caught.value)
    assert "\n" not in str(caught.value)
