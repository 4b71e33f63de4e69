"""MinHash signatures beside exact Jaccard similarities."""

import numpy as np
import pytest

from rm_ray.audit.text.minhash import (
    BANDS,
    PERMUTATIONS,
    SKETCH_WORDS,
    band,
    estimate_similarity,
    shingle,
    sign,
    sketch,
)
from rm_ray.audit.text.words import hash_words


def pairs_of_sets(
    similarity: float, count: int, size: int = 400, seed: int = 0
) -> list[np.ndarray]:
    """Return pairs of sets with this Jaccard similarity, one after the other."""
    rng = np.random.default_rng(seed)
    shared = round(2 * size * similarity / (1 + similarity))
    found = []
    for _ in range(count):
        values = rng.integers(0, 2**63, 2 * size - shared).astype(np.uint64)
        found += [values[:size], values[size - shared :]]
    return found


@pytest.mark.parametrize("similarity", [0.0, 0.5, 0.8, 0.95])
def test_sketches_estimate_the_similarity_without_bias(similarity: float):
    sketches = sketch(sign(pairs_of_sets(similarity, 200)))
    found = estimate_similarity(sketches[::2], sketches[1::2])
    assert abs(found.mean() - similarity) < (0.05 if similarity == 0 else 0.01)
    assert found.std() < 0.07


@pytest.mark.parametrize(
    ("prompt", "responses", "chance"),
    [(0.5, 0.5, 0.06), (0.8, 0.8, 0.95), (0.95, 0.95, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)],
)
def test_rows_share_a_band_as_often_as_the_mathematics_says(
    prompt: float, responses: float, chance: float
):
    prompts, answers = (
        sign(pairs_of_sets(similarity, 300, seed=seed))
        for seed, similarity in enumerate((prompt, responses))
    )
    bands = band(prompts, answers)
    shares = (bands[::2] == bands[1::2]).any(axis=1)
    assert abs(shares.mean() - chance) < 0.05


def test_shapes_and_equal_sets():
    signatures = sign([np.arange(9, dtype=np.uint64), np.arange(8, -1, -1).astype(np.uint64)])
    assert signatures.shape == (2, PERMUTATIONS)
    bands = band(signatures, signatures)
    assert bands.shape == (2, BANDS)
    assert (signatures[0] == signatures[1]).all()
    assert len(np.unique(bands[0])) == BANDS
    assert band(sign([]), sign([])).shape == (0, BANDS)
    assert sketch(sign([])).shape == (0, SKETCH_WORDS)


def test_a_short_text_is_one_shingle():
    assert len(shingle(hash_words(["only", "three", "words"]))) == 1
    assert len(shingle(hash_words(["one", "two", "three", "four", "five", "six"]))) == 2
    assert len(shingle(hash_words([]))) == 0
