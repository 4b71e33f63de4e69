import numpy as np

from rm_ray.preflight.report.histogram import BAR, histogram


def test_bar_lengths_are_proportional_to_counts():
    values = np.repeat([1, 2, 3], [10, 5, 0])
    assert histogram(values) == [
        f"1 to 1  10  {'#' * BAR}",
        f"2 to 2   5  {'#' * (BAR // 2)}",
    ]


def test_ranges_have_equal_width_and_cover_all_values():
    lines = histogram(np.array([1, 1_000]), most_rows=4)
    assert [line[:14] for line in lines] == [
        "    1 to   250", "  251 to   500", "  501 to   750", "  751 to 1,000",
    ]  # fmt: skip
    assert [line.count("#") for line in lines] == [BAR, 0, 0, BAR]


def test_one_value_has_one_bar():
    assert histogram(np.array([7, 7])) == [f"7 to 7  2  {'#' * BAR}"]
