import pytest
import torch

from rm_ray.model.heads import Float32Linear, head_of, new_head


def test_the_head_multiplies_in_float32_under_autocast_and_with_bfloat16_weights():
    head = Float32Linear(8, 1, bias=False)
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = hidden.float() @ head.weight.float().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden), expected)
    head.bfloat16()
    got = head(hidden)
    assert got.dtype == torch.float32
    assert torch.equal(got, hidden.float() @ head.weight.float().T)


def test_a_new_head_depends_on_its_seed_and_scales_with_its_width():
    first, again, other = (new_head(4095, seed) for seed in (3, 3, 4))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert first.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert first.bias is None


def test_a_head_of_a_weight_has_it_in_float32():
    weight = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    head = head_of(weight)
    assert isinstance(head, Float32Linear)
    assert (head.weight.dtype, head.bias) == (torch.float32, None)
    assert torch.equal(head.weight, weight.float())
    assert head.weight.requires_grad
