import pytest
from transformers import AutoConfig

from rm_ray.errors import InputError
from rm_ray.model.positions import check_positions, count_positions


@pytest.mark.parametrize(
    ("family", "fields", "positions"),
    [
        ("llama", {"max_position_embeddings": 2048}, 2048),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("bloom", {}, None),  # ALiBi, which has no end
        # Llama-3.1-8B: max_position_embeddings already includes its factor of 8.
        ("llama", {"max_position_embeddings": 131_072, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}, 131_072),
        # Qwen2.5's card: YaRN by 4 beyond 32,768.
        ("qwen2", {"max_position_embeddings": 32_768, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}},
         131_072),
        ("llama", {"max_position_embeddings": 4096,
                   "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 8192),
    ],
)  # fmt: skip
def test_the_limit_is_the_position_table_or_the_reach_of_rope_scaling(family, fields, positions):
    architecture = AutoConfig.for_model(family, **fields)
    assert count_positions(architecture) == positions
    if positions is None:
        check_positions(architecture, 10**9, model="m")
        return
    check_positions(architecture, positions, model="m")
    message = f"data.max_length is {positions + 1}, but .* has {positions} positions"
    with pytest.raises(InputError, match=message):
        check_positions(architecture, positions + 1, model="m")
    with pytest.raises(InputError, match=r"--max_length is .*, but --model 'm' has"):
        check_positions(architecture, positions + 1, model="m", options=("--max_length", "--model"))
