import re

from hypothesis import given
from hypothesis import strategies as st

from rm_ray.evaluation.metric_names import metric_names


def test_a_path_is_named_by_its_last_part_and_a_subset_in_lower_case():
    labels = ["Chat Hard", "/data/chat.jsonl", "org/reward-bench", "builtin:test"]
    assert list(metric_names(labels).values()) == [
        "chat.jsonl", "chat_hard", "builtin_test", "reward-bench",
    ]  # fmt: skip


def test_names_that_would_be_alike_are_told_apart():
    paths = metric_names(["a/x.jsonl", "b/x.jsonl"])
    assert paths == {"a/x.jsonl": "a_x.jsonl", "b/x.jsonl": "b_x.jsonl"}
    assert metric_names(["A b", "a_b"]) == {"A b": "a_b", "a_b": "a_b_2"}
    assert metric_names(["", "..", "é"]) == {"": "unnamed", "..": "unnamed_2", "é": "unnamed_3"}


@given(st.lists(st.text("aB1é /._-", max_size=4), max_size=6))
def test_every_label_has_a_legal_name_of_its_own(labels: list[str]):
    names = metric_names(labels)
    assert names.keys() == set(labels)
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_.-]+", name) for name in names.values())
    assert not any(name.startswith(".") or name.endswith(".") for name in names.values())
