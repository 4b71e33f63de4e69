"""What one rank has of a base model: all values, their places in files, or shapes alone."""

from pathlib import Path

import pytest
import torch
from base_models import make
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_ray.errors import InputError
from rm_ray.model.lean.base_loader import BaseLoader, LoadedBase, classifier_of
from rm_ray.pretrained import PretrainedName


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "base", "llama")
    return tmp_path / "base"


def load(name: Path, *, lean: bool = True, loads: bool = True, by_parts: bool = True) -> LoadedBase:
    architecture = AutoConfig.from_pretrained(name, num_labels=1)
    loader = BaseLoader(
        name=PretrainedName(name=str(name), option="model.name_or_path"),
        architecture=architecture,
        dtype=torch.bfloat16,
        attention="sdpa",
        loads=loads,
        by_parts=by_parts,
    )
    return loader.load(seed=3, lean=lean)


def devices(base: LoadedBase) -> set[str]:
    return {
        parameter.device.type
        for name, parameter in base.classifier.named_parameters()
        if not name.startswith("score.")
    }


def test_weights_are_those_that_transformers_loads(folder: Path):
    expected = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.bfloat16
    ).state_dict()
    whole, leanly_whole = load(folder, lean=False), load(folder, by_parts=False)
    for base in (whole, leanly_whole):
        found = base.classifier.state_dict()
        assert found.keys() == expected.keys() and not base.sources
        for name in found.keys() - {"score.weight"}:
            assert torch.equal(found[name], expected[name])


def test_what_is_read_later_has_its_place_in_a_file(folder: Path):
    base = load(folder)
    assert devices(base) == {"meta"}
    whole = load(folder, lean=False)
    assert set(base.unused) == set(whole.unused)
    values = dict(whole.classifier.named_parameters())
    for name, parameter in base.classifier.named_parameters():
        if not name.startswith("score."):
            source = base.sources[parameter]
            stored = source.read().view(source.shape).bfloat16()
            assert torch.equal(stored, values[name])


def test_what_is_needed_whole_one_rank_has_and_the_others_only_its_shapes(folder: Path):
    having, waiting = (load(folder, by_parts=False, loads=loads) for loads in (True, False))
    assert (devices(having), devices(waiting)) == ({"cpu"}, {"meta"})
    assert not having.sources and not waiting.sources
    shapes = [
        {name: (p.shape, p.dtype) for name, p in base.classifier.named_parameters()}
        for base in (having, waiting)
    ]
    assert shapes[0] == shapes[1]
    assert set(having.unused) == set(waiting.unused)


def test_random_weights_are_those_of_the_seed(tmp_path: Path):
    path = tmp_path / "small.json"
    make(tmp_path / "base", "llama")
    path.write_text((tmp_path / "base" / "config.json").read_text())
    drawn = load(path).classifier.state_dict()
    torch.manual_seed(3)
    expected = classifier_of(AutoConfig.from_pretrained(path, num_labels=1), "sdpa").state_dict()
    assert all(torch.equal(drawn[name], expected[name]) for name in expected)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("loads", [False, True])
def test_missing_weights_are_refused_on_every_rank(folder: Path, lean: bool, loads: bool):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "up_proj" in name))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"has no matching weights for model\.layers\.0\.mlp"):
        load(folder, lean=lean, loads=loads, by_parts=loads)
