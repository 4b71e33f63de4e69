import pytest

from rm_ray.preflight.checks.wording import count, gigabytes, list_first


def test_counts_use_singular_or_plural():
    assert [count(n, "worker") for n in (0, 1, 2_000)] == ["0 workers", "1 worker", "2,000 workers"]
    assert count(2, "forward pass", "es") == "2 forward passes"


def test_a_long_list_is_cut_and_the_rest_is_counted():
    assert list_first(["b", "a"]) == "b, a"
    assert list_first("abcd") == "a, b, c, d"
    assert list_first("abcdef") == "a, b, c, d and 2 more"
    assert list_first("abc", most=1) == "a and 2 more"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (6_420_000, "0.01 GB"),
        (999_999_999, "1.00 GB"),
        (1_000_000_000, "1.0 GB"),
        (68_172_000_000, "68.2 GB"),
        (1_234_500_000_000, "1,234 GB"),
    ],
)
def test_large_sizes_have_fewer_digits(size, text):
    assert gigabytes(size) == text
