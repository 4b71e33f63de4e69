"""The preflight's command."""

import pytest

from rm_ray.commands.preflight import main, parse_command


def test_a_recipe_and_options_are_read(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("cluster: {zero_stage: 2, num_workers: 4}")
    options = ["--recipe", str(recipe), "--cluster.zero_stage", "3", "--gpu_memory_gb", "80"]
    command = parse_command([*options, "--json"])
    assert (command.gpu_memory_gb, command.json, command.measure) == (80.0, True, 0)
    assert (command.config.cluster.zero_stage, command.config.cluster.num_workers) == (3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--measure", "1", "--pairs_per_second", "1"], "pass one"),
        (["--pairs_per_second", "0"], "--pairs_per_second must be a number above 0"),
        (["--gpu_memory_gb", "inf"], "--gpu_memory_gb must be a number above 0"),
        (["--gpu_memory_gb", "-1"], "--gpu_memory_gb must be a number above 0"),
        (["--measure", "-1"], "--measure must be at least 0"),
        (["--cluster.zero_stage", "4"], "zero_stage"),
    ],
)
def test_an_invalid_option_exits_with_2(capsys, options, message):
    with pytest.raises(SystemExit) as refusal:
        main(options)
    assert refusal.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_recipe_exits_with_2(capsys):
    assert main(["--recipe", "no/such.yaml"]) == 2
    assert "--recipe no/such.yaml: no such file" in capsys.readouterr().out
