"""Records on disk, divided."""

from pathlib import Path

import numpy as np

from rm_ray.audit.repeats import partitions
from rm_ray.audit.repeats.partitions import Partitions

KIND = np.dtype([("key", np.uint64)])


def test_every_record_comes_back_with_all_others_of_its_key(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(partitions, "RECORDS_AT_ONCE", 10)
    keys = np.random.default_rng(0).integers(0, 20, 95).astype(np.uint64)
    divided = Partitions(tmp_path / "keys", KIND, expected=95)
    assert divided.count == 10

    for some in np.split(keys, 5):
        divided.add(some.astype(KIND), (some % np.uint64(10)).astype(np.int64))
    found = [part["key"] for part in divided]

    assert sorted(np.concatenate(found).tolist()) == sorted(keys.tolist())
    for number, part in enumerate(found):
        assert (part % 10 == number).all()
    assert not any((tmp_path / "keys").iterdir())


def test_few_records_are_not_divided_and_many_open_a_limited_number_of_files(tmp_path: Path):
    divided = Partitions(tmp_path / "few", KIND, expected=0)
    divided.add(np.zeros(3, dtype=KIND), np.zeros(3, dtype=np.int64))
    assert [len(part) for part in divided] == [3]
    many = Partitions(tmp_path / "many", KIND, expected=10**12)
    assert len([*many]) == many.count == partitions.MOST_PARTITIONS
