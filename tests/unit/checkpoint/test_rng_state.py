from pathlib import Path

import torch

from rm_ray.checkpoint.rng_state import read_rng_state, rng_file, write_rng_state


def test_generators_continue_from_their_saved_state(tmp_path: Path):
    path = tmp_path / rng_file(3)
    write_rng_state(path)
    expected = torch.rand(5)
    torch.rand(100)
    read_rng_state(path)
    assert torch.equal(torch.rand(5), expected)


def test_every_rank_has_its_own_file():
    assert [rng_file(rank) for rank in (0, 12)] == [
        "rng-00000.safetensors",
        "rng-00012.safetensors",
    ]
