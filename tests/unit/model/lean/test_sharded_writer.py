from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForSequenceClassification

from rm_ray.model.lean.outline import names_in_files
from rm_ray.model.lean.sharded_writer import ShardedWriter, shard_name, split_into_shards


def model(dtype: torch.dtype) -> LlamaForSequenceClassification:
    config = LlamaConfig(
        vocab_size=31, hidden_size=10, intermediate_size=7, num_hidden_layers=2, num_labels=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most", [10**9, 1_000, 100])
def test_files_are_byte_for_byte_those_of_save_pretrained(tmp_path: Path, dtype, most):
    saved, written = tmp_path / "saved", tmp_path / "written"
    classifier = model(dtype)
    classifier.save_pretrained(saved, max_shard_size=most)
    (saved / "config.json").unlink()
    written.mkdir()
    weights = {name: p.detach() for name, p in classifier.named_parameters()}
    stored = names_in_files(classifier, {name: p.shape for name, p in weights.items()})
    assert stored is not None
    shapes = {stored[name]: weights[name].shape for name in stored}
    with ShardedWriter(written, shapes, dtype=dtype, max_shard_size=most) as writer:
        for name, weight in reversed(weights.items()):
            third = weight.numel() // 3
            writer.write(stored[name], weight.flatten()[third:].float(), first=third)
            writer.write(stored[name], weight.flatten()[:third].float())
    names = sorted(path.name for path in saved.iterdir())
    assert names == sorted(path.name for path in written.iterdir())
    assert (len(names) > 1) == (most < 10**9)
    for name in names:
        assert (written / name).read_bytes() == (saved / name).read_bytes(), name


def test_a_weight_that_is_not_written_whole_is_our_bug(tmp_path: Path):
    shapes = {"one": torch.Size([4]), "other": torch.Size([2, 2])}
    with (
        pytest.raises(AssertionError, match="other"),
        ShardedWriter(tmp_path, shapes, dtype=torch.float32) as writer,
    ):
        writer.write("one", torch.zeros(4))
        writer.write("other", torch.zeros(2), first=2)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(4, 60))
def test_files_are_split_as_huggingface_hub_splits_them(sizes: list[int], most: int):
    shapes = {f"w{i}": torch.Size([size]) for i, size in enumerate(sizes)}
    expected = split_torch_state_dict_into_shards(
        {name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()},
        max_shard_size=most,
        filename_pattern="model{suffix}.safetensors",
    )
    found = split_into_shards(shapes, itemsize=1, most=most)
    assert {
        shard_name(i, len(found)): names for i, names in enumerate(found)
    } == expected.filename_to_tensors
