import torch

from rm_ray.batches.labels import Labels, pair_labels


def test_a_pair_is_a_group_of_two_with_one_certain_comparison():
    labels = pair_labels(torch.tensor([0.0, 2.5, -1.0]), torch.tensor([1.0, 1.0, 0.0]))

    assert labels.better.tolist() == [0, 2, 4]
    assert labels.worse.tolist() == [1, 3, 5]
    assert labels.group.tolist() == [0, 1, 2]
    assert labels.response_group.tolist() == [0, 0, 1, 1, 2, 2]
    assert labels.weight.tolist() == labels.probability.tolist() == [1.0, 1.0, 1.0]
    assert labels.margin.tolist() == [0.0, 2.5, -1.0]
    assert labels.group_weights.tolist() == [1.0, 1.0, 0.0]
    assert labels.scores.isnan().all()
    assert labels.scores.shape == (6,)


def test_indices_are_integers_and_everything_else_is_float32():
    labels = pair_labels(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))

    indices = {"better", "worse", "group", "response_group"}
    for name, value in vars(labels).items():
        assert value.dtype == (torch.int64 if name in indices else torch.float32), name


def test_the_labels_are_where_the_margins_are_and_read_no_value():
    labels = pair_labels(torch.zeros(3, device="meta"), torch.ones(3, device="meta"))

    assert {value.device.type for value in vars(labels).values()} == {"meta"}


def test_no_pairs_have_empty_labels():
    labels = pair_labels(torch.zeros(0), torch.zeros(0))

    assert isinstance(labels, Labels)
    assert all(len(value) == 0 for value in vars(labels).values())
