"""MinHash signatures of word shingles, and what is kept of them to find and compare rows.

Signatures estimate the Jaccard similarity of sets (Broder, 1997). Rows that share one of several
bands of their signature are compared (locality-sensitive hashing; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rensa import RMinHash

from rm_ray.audit.text.words import hash_ngrams, mix

SHINGLE = 5
"""Words of a shingle, as in arXiv:2107.06499, section 4.2."""

PERMUTATIONS, BANDS = 128, 16
"""A band has 4 values of the prompt and 4 of the responses. Rows of which both have similarity 0.8
share a band with probability 0.95, of 0.9 with 1.00, and of 0.5 with 0.06."""

SKETCH_WORDS = 4
"""uint64 values of a sketch: the two low bits of each hash."""

_SEED = 20

_LOW_BITS = np.uint64(0x5555555555555555)


def shingle(hashes: np.ndarray) -> np.ndarray:
    """Return the shingles of hashed words; of a shorter text, all its words as one."""
    return hash_ngrams(hashes, min(SHINGLE, len(hashes))) if len(hashes) else hashes


def sign(sets: Sequence[np.ndarray]) -> np.ndarray:
    """Return the signatures of N sets of uint64 hashes: ``[N, PERMUTATIONS]`` uint64.

    An empty set has a signature too, which is of no use.
    """
    if not len(sets):
        return np.empty((0, PERMUTATIONS), dtype=np.uint64)
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(sets), offsets, PERMUTATIONS, _SEED
    )
    found = np.array(digests.to_rows(), dtype=np.uint64)
    return mix(found)


def band(prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Return a key for each band of N signatures of prompts and of responses.

    A key is of both, so that rows which only have short answers or a document in common are not
    compared. Shape: ``[N, BANDS]`` uint64.
    """
    rows = responses.reshape(-1, BANDS, PERMUTATIONS // BANDS).copy()
    half = rows.shape[2] // 2
    rows[:, :, :half] = prompts.reshape(rows.shape)[:, :, :half]
    keys = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), rows.shape[:2])
    for i in range(rows.shape[2]):
        keys = mix(keys ^ rows[:, :, i])
    return keys


def sketch(signatures: np.ndarray) -> np.ndarray:
    """Return two bits of each hash (b-bit minwise hashing, arXiv:0910.3349).

    Shape: ``[N, SKETCH_WORDS]`` uint64.
    """
    bits = (signatures & np.uint64(3)).reshape(-1, SKETCH_WORDS, PERMUTATIONS // SKETCH_WORDS)
    places = np.arange(0, 64, 2, dtype=np.uint64)
    packed: np.ndarray = np.bitwise_or.reduce(bits << places, axis=2)
    return packed


def estimate_similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the Jaccard similarity that sketches ``[N, SKETCH_WORDS]`` agree on: ``[N]``.

    Its standard deviation is 0.04 at a similarity of 0.8.
    """
    different = left ^ right
    different = (different | (different >> np.uint64(1))) & _LOW_BITS
    differing = np.bitwise_count(different).sum(axis=1, dtype=np.int64)
    similarity: np.ndarray = np.maximum((0.75 - differing / PERMUTATIONS) / 0.75, 0.0)
    return similarity
