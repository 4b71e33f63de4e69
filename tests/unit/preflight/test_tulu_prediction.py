"""What the README and the recipe say of the time on 64 GPUs is what the model predicts."""

import sys
from pathlib import Path

import numpy as np
import pytest

from rm_ray.data.cache.pair_tokens import PairLengths
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.prediction import Prediction, describe_prediction
from rm_ray.preflight.checks import usable

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "benchmarks")]

import predict  # noqa: E402


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return predict.predict()


def test_the_readme_shows_what_is_predicted(prediction: Prediction):
    shown = (ROOT / "README.md").read_text()

    assert "\n".join(describe_prediction(prediction)) in shown, (
        "put what tests/benchmarks/predict.py prints into README.md"
    )


def test_the_recipe_takes_the_preferred_way_and_its_longest_pair_fits(prediction: Prediction):
    recipe = predict.recipe()
    best = prediction.best

    assert best is not None
    assert best.setting.zero_stage == recipe["cluster"]["zero_stage"]
    assert best.setting.checkpointing == recipe["model"]["gradient_checkpointing"]
    assert bool(best.setting.secondary_over) == recipe["cluster"].get(
        "zero_secondary_partition", False
    )
    longest = np.array([recipe["data"]["max_length"]])
    assert recipe["batch"]["tokens_per_micro_batch"] == 2 * longest[0]
    pair = PairLengths(chosen=longest, rejected=longest, prefix=np.array([0]))
    row = ForwardPass.of(pair, layout="packed", attention="varlen")
    needed = estimate(predict.architecture(), row, best.setting).device
    room = usable(predict.GPU_MEMORY)
    text = predict.RECIPE.read_text()
    assert f"{needed / 1e9:.1f} of the {room / 1e9:.1f} GB" in text
