from pathlib import Path

import pytest
from given_settings import write_recipe

from rm_ray.config.recipe import read_recipe
from rm_ray.config.recipe_text import load_settings
from rm_ray.errors import InputError


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
    assert f"'{name}' appears twice, on line {first} and on line {second}" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_may_have_a_byte_order_mark(encoding: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("mlflow:\n  experiment: é\n".encode(encoding))

    assert read_recipe(path).mlflow.experiment == "é"


def test_yaml_anchors_and_merges_are_supported():
    text = b"a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\n"

    assert load_settings(text) == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


def test_another_encoding_is_refused():
    with pytest.raises(UnicodeDecodeError):
        load_settings("name: é".encode("latin-1"))
