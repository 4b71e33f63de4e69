import pytest
from packed_shapes import pack

from rm_ray.batches.attention_index import GroupedQueries
from rm_ray.batches.shared_prefix_index import MIN_SHARED, SharedPrefix, SharedQueries


def test_the_tails_of_a_list_share_its_prefix_as_in_a_worked_example():
    # 0 1 shared; tails 2, 3 4 and 5 of the list; then 6 shared, tails 7 and 8 of a pair.
    everywhere = pack([(2, 1, 2, 1), (1, 1, 1)], "shared").everywhere

    assert isinstance(everywhere, SharedQueries)
    assert everywhere.tails.positions.tolist() == [3, 4, 5]
    assert everywhere.tails.prefixes == (
        SharedPrefix(first_query=0, end_query=3, first_key=0, end_key=2),
    )
    assert sorted(set(everywhere.tails.own.key_positions.tolist())) == [3, 4, 5]
    assert sorted(set(everywhere.rest.query_order.tolist())) == [0, 1, 2, 6, 7, 8]
    places = everywhere.outputs.tolist()
    assert sorted(places) == list(range(9))
    assert places[3:6] == [6, 7, 8]  # the tails come after the rest


def test_only_what_pays_is_computed_together():
    for shapes in ([(2, 1, 2)] * 3, [(0, 4, 4, 4)], [(9, 5)]):  # pairs, nothing shared, one branch
        assert isinstance(pack(shapes, "shared").everywhere, GroupedQueries)
    length = MIN_SHARED // 128
    for prefix, kind in ((length, SharedQueries), (length - 1, GroupedQueries)):
        packed = pack([(prefix, 1, 64, 64)], "shared", min_shared=MIN_SHARED)
        assert isinstance(packed.everywhere, kind)


@pytest.mark.parametrize("shapes", [[(30, 5, 6, 7), (4, 3, 2)]])
def test_at_the_ends_every_branch_has_keys_of_its_own(shapes):
    assert isinstance(pack(shapes, "shared").at_ends, GroupedQueries)
