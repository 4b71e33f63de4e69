from published_rows import ROWS, A, B

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.preferences.group_reading import parse_group
from rm_ray.data.rows.groups import FIRST_WINS


def test_skywork_and_tulu3_are_pairs_of_conversations():
    skywork = parse_group(ROWS["skywork"], rules=ColumnRules(form="skywork"))
    tulu3 = parse_group(ROWS["tulu3"], rules=ColumnRules(form="tulu3"))

    for group, source in ((skywork, "magpie_pro"), (tulu3, "off-policy")):
        assert [message["content"] for message in group.responses] == [A, B]
        assert (group.comparisons, group.source) == (FIRST_WINS, source)


def test_each_right_response_of_reward_bench_2_beats_each_wrong_one():
    row = {**ROWS["reward_bench_2"], "chosen": [A, "Indeed."], "rejected": [B, "Perhaps."]}

    group = parse_group(row)

    assert [(c.better, c.worse) for c in group.comparisons] == [(0, 2), (0, 3), (1, 2), (1, 3)]
