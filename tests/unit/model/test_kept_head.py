"""Heads by name and shape, and in saved checkpoints of every kind."""

from pathlib import Path

import pytest
import torch
from base_models import found, refusal
from reward_heads import BACKBONE, HIDDEN, backbone, build, head_weight, save
from torch import Tensor
from transformers import LlamaForTokenClassification, PreTrainedTokenizerBase

from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import check_architecture
from rm_ray.model.kept_head import (
    PLAIN,
    KeptHead,
    choose_head,
    find_head_weights,
    refuse_bias,
    require_head_files,
)
from rm_ray.publish.base_model import find_base


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("builtin")


def choose(
    choice: str, architectures: tuple[str, ...] = (), **shapes: tuple[int, ...]
) -> KeptHead | None:
    """Choose a head of hidden size 8; ``__`` in a name stands for a dot."""
    found = {name.replace("__", "."): torch.Size(shape) for name, shape in shapes.items()}
    return choose_head(
        choice,  # type: ignore[arg-type]
        found,
        hidden_size=8,
        architectures=architectures,
        model="model.name_or_path 'it'",
    )


def test_head_weights_are_told_from_those_of_the_backbone():
    shapes = {
        "score.weight": (1, 8), "score.0.bias": (8,), "v_head.summary.weight": (1, 8),
        "model.reward_head.weight": (1, 8), "regression_layer.weight": (19, 8),
        "gating.0.weight": (4, 8), "normalizer.mean": (1,), "out.weight": (1, 8),
    }  # fmt: skip
    others = {
        "lm_head.weight": (1, 8), "embed_out.weight": (9, 8), "model.norm.weight": (8,),
        "model.layers.2.shared_head.head.weight": (9, 8), "mtp.layers.0.fc.weight": (1, 8),
        "vision_tower.vision_model.head.probe": (1, 1, 8), "out.bias": (1,),
        "model.layers.0.mlp.gate.e_score_correction_bias": (4,),
    }  # fmt: skip
    weights = {name: torch.empty(shape) for name, shape in {**shapes, **others}.items()}
    assert find_head_weights(weights, weights, hidden_size=8) == {
        name: torch.Size(shape) for name, shape in shapes.items()
    }
    used = {"regression_layer.weight", "out.weight", "score.weight"}
    left = find_head_weights(weights, weights.keys() - used, hidden_size=8)
    assert shapes.keys() - left.keys() == {"regression_layer.weight", "out.weight"}


@pytest.mark.parametrize("name", PLAIN)
def test_a_linear_head_of_one_output_is_kept_unless_a_new_one_is_wanted(name):
    weight, bias = f"{name}.weight", f"{name}.bias"
    for choice in ("auto", "keep"):
        assert choose(choice, **{weight: (1, 8)}) == KeptHead(weight=weight)
        both = choose(choice, **{bias: (1,), weight: (1, 8)})
        assert both == KeptHead(weight=weight, bias=bias)
    assert choose("new", **{weight: (1, 8)}) is None


def test_without_a_head_auto_draws_one_and_keep_refuses():
    assert choose("auto") is None
    assert choose("new") is None
    with pytest.raises(
        InputError, match=r"'keep', but .*'it' has no head: .* score\.weight, .*'new'"
    ):
        choose("keep")


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"score__weight": (3, 8)}, r"score.weight \[3, 8\]\) that has 3 outputs"),
        ({"score__weight": (1, 9)}, "does not fit the backbone, whose hidden size is 8"),
        ({"score__weight": (8,)}, "does not fit the backbone"),
        (
            {"score__0__weight": (8, 8), "score__2__weight": (1, 8)},
            r"single .* call it score\.weight",
        ),
        ({"v_head__weight": (1, 8), "score__weight": (1, 8)}, "one of several: score and v_head"),
        ({"value_head__weight": (1, 8), "normalizer__mean": (1,)}, "not a single linear layer"),
        ({"regression_layer__weight": (19, 8), "gating__weight": (4, 8)}, "of a known name"),
        ({"score__bias": (1,)}, "not a single linear layer"),
        ({f"score__{i}__weight": (8, 8) for i in range(9)}, "and 3 more"),
    ],
)
def test_an_unclear_head_is_refused_unless_a_new_one_is_wanted(shapes, reason):
    for choice in ("auto", "keep"):
        with pytest.raises(InputError, match=reason) as refused:
            choose(choice, **shapes)
        assert str(refused.value).startswith("model.name_or_path 'it' has a head (")
        assert "set model.head to 'new'" in str(refused.value)
    assert choose("new", **shapes) is None


def test_a_token_classifier_is_refused():
    with pytest.raises(InputError, match=r"scores every token .*LlamaForTokenClassification"):
        choose("auto", ("LlamaForTokenClassification",), score__weight=(1, 8))


def test_a_bias_must_be_zero():
    refuse_bias("score.bias", torch.zeros(1, dtype=torch.bfloat16), model="it")
    with pytest.raises(InputError, match=r"score.bias is 0.25.* changes no comparison"):
        refuse_bias("score.bias", torch.tensor([0.25]), model="it")


@pytest.mark.parametrize("name", ["builtin", "config"])
def test_random_weights_have_no_head_to_keep(tmp_path, tokenizer, name):
    path = tmp_path / "model.json"
    path.write_text('{"model_type": "llama"}')
    config = ModelConfig(name_or_path=str(path) if name == "config" else name, head="keep")
    for check in (require_head_files, find_base, lambda c: check_architecture(c, tokenizer)):
        with pytest.raises(InputError, match=r"'keep', but .* has random weights"):
            check(config)
    with pytest.raises(InputError, match=r"'keep', but .* has random weights"):
        build(config.name_or_path, tokenizer, head="keep")


@pytest.mark.parametrize("storage", ["whole", "sharded", "bin", "sharded bin", "apart"])
@pytest.mark.parametrize("name", ["score", "value_head", "v_head.summary"])
def test_a_head_is_read_from_a_checkpoint_of_any_form(tmp_path, tokenizer, storage, name):
    weight = head_weight().bfloat16()
    head = {f"{name}.weight": weight, f"{name}.bias": torch.zeros(1)}
    save(tmp_path, head, storage)
    base = found(tmp_path)
    assert base is not None
    assert base.head == KeptHead(weight=f"{name}.weight", bias=f"{name}.bias")
    assert base.unused == base.replaced == ()
    for dtype in (torch.float32, torch.bfloat16):
        model = build(tmp_path, tokenizer, dtype=dtype)
        assert model.kept_head == f"{name}.weight"
        score = model.classifier.score
        assert score.weight.dtype == torch.float32 and score.bias is None
        assert torch.equal(score.weight, weight.float())


def test_a_float32_head_of_a_bfloat16_backbone_is_not_rounded(tmp_path, tokenizer):
    weight = head_weight()
    save(tmp_path, {"score.weight": weight})
    model = build(tmp_path, tokenizer, dtype=torch.bfloat16)
    assert torch.equal(model.classifier.score.weight, weight)
    assert not torch.equal(weight, weight.bfloat16().float())


def refused_everywhere(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return why the head is refused; the preflight and the workers give the same reason."""
    text = refusal(folder)
    with pytest.raises(InputError) as refused:
        build(folder, tokenizer)
    assert str(refused.value) == text
    return text


@pytest.mark.parametrize("storage", ["whole", "sharded", "bin", "apart"])
def test_a_biased_head_is_refused_before_and_in_workers(tmp_path, tokenizer, storage):
    head = {"v_head.summary.weight": head_weight(), "v_head.summary.bias": torch.tensor([0.5])}
    save(tmp_path, head, storage)
    assert "(v_head.summary.bias is 0.5)" in refused_everywhere(tmp_path, tokenizer)


@pytest.mark.parametrize(
    "head",
    [
        {"score.weight": torch.ones(3, HIDDEN)},
        {"score.weight": torch.ones(1, HIDDEN), "value_head.weight": torch.ones(1, HIDDEN)},
        {"score.0.weight": torch.ones(4, HIDDEN), "score.2.weight": torch.ones(1, 4)},
        {"regression_layer.weight": torch.ones(19, HIDDEN), "gating.weight": torch.ones(1, HIDDEN)},
    ],
)
def test_an_unclear_head_is_refused_before_and_in_workers(tmp_path, tokenizer, head):
    save(tmp_path, head)
    text = refused_everywhere(tmp_path, tokenizer)
    assert all(f"{name} {list(weight.shape)}" in text for name, weight in head.items())
    base = find_base(ModelConfig(name_or_path=str(tmp_path), head="new"))
    assert base is not None
    assert (base.head, base.replaced, base.unused) == (None, tuple(sorted(head)), ())
    drawn = build(tmp_path, tokenizer, head="new")
    assert drawn.kept_head is None
    other = build(save(tmp_path / "bare", {}), tokenizer)
    assert torch.equal(drawn.classifier.score.weight, other.classifier.score.weight)


def test_a_saved_token_classifier_is_refused(tmp_path, tokenizer):
    config = backbone().config
    config.num_labels = 1
    LlamaForTokenClassification(config).save_pretrained(tmp_path)
    assert "LlamaForTokenClassification" in refused_everywhere(tmp_path, tokenizer)


def test_the_backbone_under_a_kept_head_is_the_checkpoint_s(tmp_path, tokenizer):
    save(tmp_path, {"v_head.summary.weight": head_weight()})
    read = build(tmp_path, tokenizer).classifier.base_model.state_dict()
    saved: dict[str, Tensor] = backbone().base_model.state_dict()
    assert all(torch.equal(read[name], weight) for name, weight in saved.items())
    assert BACKBONE["hidden_size"] == HIDDEN
