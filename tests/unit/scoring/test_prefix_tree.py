import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.scoring.prefix_tree import PrefixTree

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6).map(lambda ids: np.array(ids, np.int32)),
    max_size=20,
)
"""Of so few different tokens that many share prefixes."""


def tokens(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def keep(tree: PrefixTree, *texts: str) -> None:
    """Keep sequences, each in a pass of its own."""
    for text in texts:
        tree.begin_pass()
        ids = tokens(text)
        found = tree.take(ids)
        new = tree.allocate(len(ids) - len(found))
        tree.insert(ids, np.concatenate([found, new]))


def counts(tree: PrefixTree, *texts: str) -> list[int]:
    return [tree.count(tokens(text)) for text in texts]


def test_a_prompt_is_kept_once_for_all_its_responses():
    tree = PrefixTree(20)
    keep(tree, "snow?yes", "snow?no", "snow?nothing")
    assert tree.num_free == 20 - len("snow?yes" + "no" + "thing")
    asked = counts(tree, "snow?yes!", "snow?", "snow?note", "so", "rain")
    assert asked == [8, 5, 8, 1, 0]


def test_the_least_recently_used_is_evicted_from_its_end():
    tree = PrefixTree(10)
    keep(tree, "abcde", "abfg", "xy")
    assert tree.num_free == 1
    keep(tree, "abcd")  # uses the beginning of the oldest
    keep(tree, "uvw")
    assert counts(tree, "abcde", "abfg", "xy", "uvw") == [4, 3, 2, 3]


def test_what_a_pass_uses_is_not_evicted_in_it():
    tree = PrefixTree(6)
    keep(tree, "abcd")
    tree.begin_pass()
    held = tree.take(tokens("abx"))
    new = tree.allocate(5)  # two of six slots are in use
    assert {*held} | {*new} == {*range(6)}
    assert len(new) == 4
    assert counts(tree, "abcd") == [2]


def test_a_sequence_that_grows_by_a_token_stays_one_node():
    tree = PrefixTree(100)
    keep(tree, *("abcdefghij"[:length] for length in range(1, 11)))
    assert [len(node.ids) for node in tree._nodes()] == [10]
    assert counts(tree, "abcdefghij", "abcx") == [10, 3]


def test_the_shorter_of_a_kept_sequence_keep_no_memory_of_the_longer():
    tree = PrefixTree(1_000)
    whole = np.arange(400, dtype=np.int32)
    for length in range(400, 0, -1):
        tree.begin_pass()
        found = tree.take(whole[:length])
        tree.insert(whole[:length], np.concatenate([found, tree.allocate(length - len(found))]))
    arrays = [array for node in tree._nodes() for array in (node.ids, node.slots)]
    assert sum(array.nbytes if array.base is None else array.base.nbytes for array in arrays) == (
        400 * (4 + 8)
    )


def test_a_sequence_kept_already_takes_no_slots():
    tree = PrefixTree(9)
    keep(tree, "abc")
    tree.begin_pass()
    slots = tree.allocate(3)
    assert not len(tree.insert(tokens("abc"), slots))
    tree.release(slots)
    assert tree.num_free == 6


@given(SEQUENCES, st.integers(1, 15))
def test_every_slot_holds_one_token_that_follows_the_same_ones(sequences, num_slots):
    """A cache of a token and all before it, in a dictionary, is never contradicted."""
    tree, held = PrefixTree(num_slots), {}
    for ids in sequences:
        tree.begin_pass()
        found = tree.take(ids)
        assert len(found) == tree.count(ids)
        for i, slot in enumerate(found.tolist()):
            assert held[slot] == tuple(ids[: i + 1])
        new = tree.allocate(len(ids) - len(found))
        length = len(found) + len(new)
        assert length == min(len(ids), num_slots)
        assert not {*new} & {*found}
        for i, slot in enumerate(new.tolist(), start=len(found)):
            held[slot] = tuple(ids[: i + 1])
        assert (tree.insert(ids[:length], np.concatenate([found, new])) == new).all()
        assert tree.count(ids) == length
        assert len({*tree._free.tolist()}) == tree.num_free
    kept = sum(len(node.ids) for node in tree._nodes())
    assert kept + tree.num_free == num_slots
