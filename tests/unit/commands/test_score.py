import pytest

from rm_ray.commands import evaluate, score
from rm_ray.config.scoring import Workers
from rm_ray.config.sections.cluster import ClusterConfig

OPTIONS = ["--model", "m", "--data", "a.jsonl", "--output", "out"]


@pytest.mark.parametrize("main", [score.main, evaluate.main])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "seed must be from 0 to 4294967295"),
        (["--max_length", "0"], "max_length must be positive"),
        (["--dtype", "float16"], "--dtype"),
        (["--num_workers", "many"], "--num_workers"),
    ],
)
def test_a_wrong_option_exits_with_2_before_anything_is_loaded(main, options, message, capsys):
    try:
        status = main([*OPTIONS, *options])
    except SystemExit as refusal:  # raised by the parser
        status = refusal.code
    assert status == 2
    assert message in " ".join("".join(capsys.readouterr()).split())


def test_scoring_requires_an_output(capsys):
    with pytest.raises(SystemExit, match="2"):
        score.main(OPTIONS[:-2])
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "workers", [Workers(), Workers(num_workers=3, use_gpu=True, cpus_per_worker=2)]
)
def test_worker_options_become_a_cluster_section(workers):
    cluster, default = workers.cluster, ClusterConfig()
    assert (cluster.num_workers, cluster.use_gpu, cluster.cpus_per_worker) == (
        workers.num_workers, workers.use_gpu, workers.cpus_per_worker
    )  # fmt: skip
    assert (cluster.zero_stage, cluster.offload) == (default.zero_stage, default.offload)
