from typing import Any

from rm_ray.worker.data_config import PerRankStreams


def test_every_rank_gets_its_stream_of_each_dataset():
    planned: dict[str, Any] = {"train": object(), "eval": object()}
    by_rank = PerRankStreams().configure(planned, 3, ["ignored"], more="ignored")
    assert [list(streams) for streams in by_rank] == [["train", "eval"]] * 3
    for rank, streams in enumerate(by_rank):
        for name, stream in streams.items():
            assert stream.planned is planned[name]
            assert (stream.rank, stream.world_size) == (rank, 3)
