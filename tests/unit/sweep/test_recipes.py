from pathlib import Path

import pytest
from given_settings import NOTHING_AT_ITS_DEFAULT, OTHER_DATA, OTHER_OBJECTIVES

from rm_ray.config.recipe import read_recipe
from rm_ray.config.train_config import TrainConfig
from rm_ray.sweep.recipes import recipe_text


@pytest.mark.parametrize(
    "config", [TrainConfig(), NOTHING_AT_ITS_DEFAULT, OTHER_DATA, *OTHER_OBJECTIVES]
)
def test_a_recipe_gives_the_settings_that_it_was_written_from(config: TrainConfig, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(config, "Two\nlines."))
    assert read_recipe(path) == config
    assert path.read_text().startswith("# Two\n# lines.\n")


def test_a_recipe_leaves_defaults_out():
    assert recipe_text(TrainConfig()) == "{}\n"
