from pathlib import Path
from typing import Any

import pytest
import yaml
from given_settings import NOTHING_AT_ITS_DEFAULT, refusal_of, write_recipe

from rm_ray.commands.evaluate import main as evaluate
from rm_ray.commands.inspect import main as inspect
from rm_ray.commands.score import main as score
from rm_ray.commands.sweep import main as sweep
from rm_ray.commands.train import parse_command
from rm_ray.config.fields import flatten
from rm_ray.config.recipe import read_recipe
from rm_ray.config.sections.batch import BatchConfig
from rm_ray.config.sections.data import DataConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))


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
    message = refusal_of(settings)

    assert message.startswith(f"recipe.yaml: unknown field '{unknown}'; did you mean '")
    assert nearest in message.split("did you mean")[1]


def test_an_unknown_field_without_a_near_match_lists_all_fields():
    message = refusal_of({"checkpoint": {"zzz": 1}})

    known = "every_steps, keep, keep_best_by, storage_patience_s"
    assert message == f"recipe.yaml: unknown field 'checkpoint.zzz'; known: {known}"


def test_a_section_without_fields_is_refused():
    assert refusal_of({"data": 3}) == "recipe.yaml: 'data' must contain fields, got 3"


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
    message = refusal_of({section: {field: value}})

    assert f"{section}.{field}" in message
    shown = value[0] if field == "betas" else value
    assert str(shown) in message.split("got")[-1]


@pytest.mark.parametrize("field", ["epochs", "learning_rate", "warmup_steps"])
def test_a_boolean_is_not_a_number(field: str):
    message = refusal_of({"optimizer": {field: True}})

    assert f"optimizer.{field}" in message
    assert message.endswith("got True")


def test_every_wrong_value_is_named_at_once():
    message = refusal_of({"run": {"seed": -1}, "optimizer": {"epochs": "all"}})

    assert "run.seed must be from 0 to 4294967295, got -1" in message
    assert "optimizer.epochs" in message


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


def test_a_missing_recipe_lists_the_recipes_in_its_folder(tmp_path: Path):
    there = write_recipe(tmp_path, "")

    with pytest.raises(InputError) as caught:
        read_recipe(tmp_path / "missing.yaml")

    assert "missing.yaml: no such file" in str(caught.value)
    assert str(there) in str(caught.value)


def test_a_folder_given_as_recipe_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="--recipe"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("run: [", "not valid YAML"), ("- a\n- b\n", "must contain sections")]
)
def test_a_recipe_that_is_not_yaml_or_has_no_sections_is_refused(
    tmp_path: Path, text: str, message: str
):
    with pytest.raises(InputError, match=message):
        read_recipe(write_recipe(tmp_path, text))


def test_there_are_recipes():
    assert ROOT / "jobs" / "recipes" / "debug.yaml" in RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.name for path in RECIPES])
def test_every_recipe_loads_with_the_values_it_sets(recipe: Path):
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
    ("arguments", "message"),
    [
        (["--optimizer.learnin_rate", "1"], "--optimizer.learning_rate"),
        (["--optimizer.epochs", "1.5"], "--optimizer.epochs"),
        (["--cluster.zero_stage", "4"], "--cluster.zero_stage"),
        (["--run.seed", "-1"], "run.seed must be from 0 to"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_names_the_option(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        parse_command(arguments)

    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


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


def test_an_empty_section_has_its_defaults_and_one_source_becomes_a_list(tmp_path: Path):
    recipe = write_recipe(tmp_path, "data:\n  train: a.jsonl\n  eval: b.jsonl\noptimizer:\n")

    config = read_recipe(recipe)

    assert config.data.train == ("a.jsonl",)
    assert config.data.eval == ("b.jsonl",)
    assert config.optimizer == TrainConfig().optimizer


def test_a_recipe_of_the_wrong_type_names_the_field(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.train: Input should be a list, got 5"):
        read_recipe(write_recipe(tmp_path, "data:\n  train: 5\n"))


def test_own_training_pairs_get_no_built_in_evaluation():
    assert parse_command(["--data.train", "mine.jsonl"]).config.data.held_out == ()
    assert parse_command([]).config.data.held_out == ("builtin:test",)


def test_columns_in_a_recipe_may_be_a_mapping_or_a_list(tmp_path: Path):
    as_mapping = write_recipe(tmp_path, "data: {columns: {prompt: question, chosen: response_j}}")
    assert read_recipe(as_mapping).data.columns == ("prompt=question", "chosen=response_j")

    as_list = write_recipe(tmp_path, "data: {columns: [prompt=question, chosen=response_j]}")
    assert read_recipe(as_list).data.columns == ("prompt=question", "chosen=response_j")

    command = parse_command(["--data.columns", "prompt=question", "chosen=a=b"])
    assert command.config.data.rules.columns == {"prompt": "question", "chosen": "a=b"}


def test_weights_in_a_recipe_may_be_a_mapping_or_a_list(tmp_path: Path):
    for text in ("{helpfulness: 0.65, verbosity: -1}", "[helpfulness=0.65, verbosity=-1]"):
        recipe = write_recipe(tmp_path, f"data: {{score_weights: {text}}}")
        assert read_recipe(recipe).data.score_weights == ("helpfulness=0.65", "verbosity=-1")

    recipe = write_recipe(tmp_path, "data: {score_weights: {helpfulness: 1e-3}}")  # YAML's text
    assert read_recipe(recipe).data.rules.score_weights == (("helpfulness", 1e-3),)
    with pytest.raises(InputError, match=r"data\.score_weights must be a list of ATTRIBUTE=WEIGHT"):
        read_recipe(write_recipe(tmp_path, "data: {score_weights: {helpfulness: high}}"))
    with pytest.raises(InputError, match="score_weights"):
        read_recipe(write_recipe(tmp_path, "data: {score_weights: {helpfulness: true}}"))


def test_an_unquoted_date_becomes_a_string(tmp_path: Path):
    for day in ("2024-01-02", "'2024-01-02'"):
        recipe = write_recipe(tmp_path, f"data:\n  template_date: {day}\n")
        assert read_recipe(recipe).data.template_date == "2024-01-02"


@pytest.mark.parametrize("day", ["2024-01-02 10:00:00", "2024", "2024-13-45"])
def test_an_invalid_unquoted_date_is_refused(day: str, tmp_path: Path):
    with pytest.raises(InputError, match="recipe"):
        read_recipe(write_recipe(tmp_path, f"data:\n  template_date: {day}\n"))


def test_one_string_becomes_a_list_and_an_empty_list_its_default(tmp_path: Path):
    one = write_recipe(tmp_path, "data:\n  columns: prompt=question\n  ignore_columns: id\n")
    assert read_recipe(one).data == DataConfig(columns=("prompt=question",), ignore_columns=("id",))

    empty = write_recipe(tmp_path, "data:\n  train:\n  eval:\n  columns:\n  ignore_columns:\n")
    assert read_recipe(empty) == TrainConfig()


@pytest.mark.parametrize("text", ["[" * 5_000, "{a: " * 5_000 + "1" + "}" * 5_000])
def test_a_recipe_nested_too_deeply_is_refused_in_one_line(text: str, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        read_recipe(write_recipe(tmp_path, text))

    assert "must contain sections with fields" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sets_in_a_recipe_may_be_a_mapping_or_a_list(tmp_path: Path):
    listed = ("chat=a.jsonl", "bench=b.parquet=400", "bench=c.jsonl")
    for text in (
        "{chat: a.jsonl, bench: [b.parquet=400, c.jsonl]}",
        "[chat=a.jsonl, bench=b.parquet=400, bench=c.jsonl]",
    ):
        recipe = write_recipe(tmp_path, f"evaluation: {{sets: {text}}}")
        assert read_recipe(recipe).evaluation.sets == listed
    assert parse_command(["--evaluation.sets", *listed]).config.evaluation.sets == listed
    one = write_recipe(tmp_path, "evaluation: {sets: chat=a.jsonl}")
    assert read_recipe(one).evaluation.sets == ("chat=a.jsonl",)
    two = write_recipe(tmp_path, "evaluation: {sets: chat=my dir/a=b.jsonl  bench=b.parquet=400}")
    assert read_recipe(two).evaluation.sets == ("chat=my dir/a=b.jsonl", "bench=b.parquet=400")
    assert parse_command(["--recipe", str(one), "--evaluation.sets"]).config.evaluation.sets == ()
    empty = write_recipe(tmp_path, "evaluation:\n  sets:\n")
    assert read_recipe(empty) == TrainConfig()


@pytest.mark.parametrize("text", ["{chat: 5}", "{chat: []}", "{chat: [1]}", "5", "{chat: }"])
def test_sets_of_another_type_are_refused(text: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"evaluation\.sets"):
        read_recipe(write_recipe(tmp_path, f"evaluation: {{sets: {text}}}"))


@pytest.mark.parametrize(
    ("main", "arguments", "flag"),
    [
        (evaluate, ["--model", "a", "--data", "x", "--model", "b"], "model"),
        (evaluate, ["--model", "a", "--data=x", "--data=y"], "data"),
        (score, ["--model", "a", "--output", "o", "--data", "x", "--data", "y"], "data"),
        (
            sweep,
            ["--data.ignore-columns", "a", "--data.ignore_columns", "b"],
            "data.ignore_columns",
        ),
        (inspect, ["--data", "x", "--data", "y"], "data"),
    ],
)
def test_a_repeated_option_that_takes_a_list_is_refused(main, arguments, flag, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().out
    assert f"--{flag} is given 2 times, of which only the last would count" in said


def test_a_repeated_option_of_one_value_counts_as_given_last():
    options = ["--optimizer.learning_rate", "1e-3", "--optimizer.learning_rate", "1e-4"]
    assert parse_command(options).config.optimizer.learning_rate == 1e-4
