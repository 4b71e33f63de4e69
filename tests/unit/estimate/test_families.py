"""Which inputs a layer of each family keeps."""

import pytest

from rm_ray.estimate.architecture import Tuning
from rm_ray.estimate.families import FAMILIES, WITH_LIGER, Kept


def adapters(*names: str) -> Tuning:
    return Tuning(trained=(1,), num_layers=2, in_matrices=10, adapted=names, rank=4)


def test_a_layer_that_is_trained_keeps_the_input_of_every_matrix():
    last = Tuning(trained=(1,), num_layers=2, in_matrices=10)
    for tuning in (None, last):
        llama = Kept.of(FAMILIES["llama"], tuning)
        assert llama == Kept(attention=3, keys_values=2, output=True, branches=2, down=True)
        neox = Kept.of(FAMILIES["gpt_neox"], tuning)
        assert neox == Kept(attention=1, keys_values=2, output=True, branches=1, down=True)


@pytest.mark.parametrize(
    ("family", "names", "kept"),
    [
        ("llama", ("q_proj", "v_proj"), (2, 1, False, 0, False)),
        ("llama", ("o_proj", "gate_proj", "down_proj"), (0, 0, True, 1, True)),
        ("gpt_neox", ("query_key_value", "dense", "dense_h_to_4h"), (1, 0, True, 1, False)),
    ],
)
def test_a_frozen_layer_keeps_the_inputs_of_its_adapters(family, names, kept):
    attention, keys_values, output, branches, down = kept
    assert Kept.of(FAMILIES[family], adapters(*names)) == Kept(
        attention=attention, keys_values=keys_values, output=output, branches=branches, down=down,
        norms=False, rank=4, adapters=len(names),
    )  # fmt: skip


def test_liger_has_kernels_for_all_but_one_family():
    assert FAMILIES.keys() - WITH_LIGER == {"gpt_neox"}
