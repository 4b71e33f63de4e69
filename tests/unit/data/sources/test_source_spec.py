import pytest
from source_files import fragments_of

from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError


@pytest.mark.parametrize(
    ("text", "location", "split", "fraction", "count"),
    [
        ("pairs.jsonl", "pairs.jsonl", None, None, None),
        ("pairs.jsonl=0.5", "pairs.jsonl", None, 0.5, None),
        ("pairs.jsonl=400", "pairs.jsonl", None, None, 400),
        ("pairs.jsonl=1.0", "pairs.jsonl", None, 1.0, None),
        ("pairs.jsonl=1", "pairs.jsonl", None, None, 1),
        ("pairs.jsonl=.25", "pairs.jsonl", None, 0.25, None),
        ("org/name", "org/name", None, None, None),
        ("org/name:test", "org/name", "test", None, None),
        ("org/name:test=0.5", "org/name", "test", 0.5, None),
        ("org/name:train_prefs=400", "org/name", "train_prefs", None, 400),
        (" builtin:train ", "builtin", "train", None, None),
        ("s3://bucket/pairs/*.parquet=7", "s3://bucket/pairs/*.parquet", None, None, 7),
        ("hdfs://host:9000/pairs.jsonl", "hdfs://host:9000/pairs.jsonl", None, None, None),
        ("/data/day=3/pairs.jsonl", "/data/day=3/pairs.jsonl", None, None, None),
        ("/data/day=3/pairs.jsonl=5", "/data/day=3/pairs.jsonl", None, None, 5),
    ],
)
def test_a_source_is_a_location_with_a_split_and_a_share(
    text: str, location: str, split: str | None, fraction: float | None, count: int | None
):
    assert SourceSpec.parse(text) == SourceSpec(
        text=text, location=location, split=split, fraction=fraction, count=count
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must look like path-or-dataset[:split][=share]"),
        ("a.jsonl=0", "a number of rows must be at least 1"),
        ("a.jsonl=0.0", "a fraction must be above 0 and at most 1.0"),
        ("a.jsonl=1.5", "a fraction must be above 0 and at most 1.0"),
    ],
)
def test_a_share_out_of_range_is_refused_with_the_rule(text: str, rule: str):
    with pytest.raises(InputError) as caught:
        SourceSpec.parse(text)

    assert f"data source '{text}'" in str(caught.value)
    assert rule in str(caught.value)


@pytest.mark.parametrize("share", ["1.2.3", ".", "0.5.", "half", "-5", "50%", "1e3", ""])
def test_a_share_that_is_not_a_number_is_refused_without_asking_the_hub(share: str):
    with pytest.raises(InputError, match=r"data source 'a\.jsonl="):
        fragments_of(f"a.jsonl={share}")
