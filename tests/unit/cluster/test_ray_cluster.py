import time
from dataclasses import replace

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.cluster import ray_cluster
from rm_ray.cluster.ray_cluster import count_fitting_runs, fit_to_machines
from rm_ray.commands.train import parse_command
from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.errors import InputError, LostError

RULE = "a number of at least 1, or a range such as '2-8'"


def resources(*, cpus: float = 0, gpus: float = 0) -> dict[str, float]:
    """Return a machine's resources as Ray reports them, without those that it lacks."""
    named = {"CPU": cpus, "GPU": gpus, "memory": 1e10, "node:10.0.0.1": 1.0}
    return {name: amount for name, amount in named.items() if amount}


def fitted(config: ClusterConfig, **has: float) -> tuple[int | str | None, bool | None]:
    found = fit_to_machines(config, [resources(**has)])
    return found.num_workers, found.use_gpu


def refusal(config: ClusterConfig, **has: float) -> str:
    with pytest.raises(InputError) as caught:
        fit_to_machines(config, [resources(**has)])
    return str(caught.value)


@pytest.mark.parametrize(
    ("asked", "bounds"),
    [
        (None, None),
        (1, (1, 1)),
        (4, (4, 4)),
        ("4", (4, 4)),
        ("2-8", (2, 8)),
        ("3-3", (3, 3)),
        ("1-1000", (1, 1000)),
    ],
)
def test_workers_may_be_a_number_or_a_range(
    asked: int | str | None, bounds: tuple[int, int] | None
):
    assert ClusterConfig(num_workers=asked).worker_bounds == bounds
    assert parse_config({"cluster": {"num_workers": asked}}).cluster.worker_bounds == bounds


@pytest.mark.parametrize(("word", "kept"), [("4", 4), ("2-8", "2-8"), ("None", None)])
def test_workers_may_be_given_on_the_command_line(word: str, kept: int | str | None):
    assert parse_command(["--cluster.num_workers", word]).config.cluster.num_workers == kept


@pytest.mark.parametrize(
    "asked", [0, -1, "0", "0-3", "8-2", "-3", "-", "", "x", "x-2", "2-x", "2-8-9", "2--8", "1.5"]
)
def test_invalid_numbers_of_workers_are_refused(asked: int | str):
    told = f"cluster.num_workers must be {RULE}, got {asked!r}"

    with pytest.raises(InputError) as caught:
        ClusterConfig(num_workers=asked)
    assert str(caught.value) == told

    with pytest.raises(InputError) as caught:
        parse_config({"cluster": {"num_workers": asked}})
    assert str(caught.value) == f"the configuration: {told}"


@pytest.mark.parametrize("asked", [True, False])
def test_boolean_numbers_of_workers_are_refused(asked: bool):
    with pytest.raises(InputError, match=rf"cluster\.num_workers must be .*, got {asked}"):
        ClusterConfig(num_workers=asked)
    with pytest.raises(InputError, match=rf"cluster\.num_workers must not be .*, got {asked}"):
        parse_config({"cluster": {"num_workers": asked}})


@pytest.mark.parametrize("asked", [2.5, [2, 8], "two"])
def test_numbers_of_workers_of_another_type_are_refused(asked: object):
    with pytest.raises(InputError, match=r"cluster\.num_workers"):
        parse_config({"cluster": {"num_workers": asked}})


@pytest.mark.parametrize("cpus", [5, 64])
def test_a_fixed_number_of_workers_is_kept(cpus: int):
    assert fitted(ClusterConfig(num_workers=4), cpus=cpus) == (4, False)
    assert fitted(ClusterConfig(num_workers="4"), cpus=cpus) == (4, False)


@pytest.mark.parametrize(
    ("cpus", "workers"), [(3, 2), (4, 3), (8, 7), (9, 8), (10, 8), (1_000, 8), (3.9, 2)]
)
def test_a_range_takes_what_the_cluster_has_and_leaves_a_cpu_to_ray_data(cpus: float, workers: int):
    assert fitted(ClusterConfig(num_workers="2-8"), cpus=cpus) == (workers, False)


@pytest.mark.parametrize(("cpus", "workers"), [(9, 2), (12, 2), (13, 3), (33, 8), (99, 8)])
def test_a_range_counts_all_cpus_of_each_worker(cpus: int, workers: int):
    config = ClusterConfig(num_workers="2-8", cpus_per_worker=4)

    assert fitted(config, cpus=cpus) == (workers, False)


@pytest.mark.parametrize(
    ("gpus", "cpus", "workers"),
    [(2, 64, 2), (5, 64, 5), (8, 64, 8), (16, 64, 8), (8, 4, 3), (2.5, 64, 2)],
)
def test_a_range_takes_no_more_workers_than_there_are_gpus(gpus: float, cpus: int, workers: int):
    config = ClusterConfig(num_workers="2-8")

    assert fitted(config, cpus=cpus, gpus=gpus) == (workers, True)
    assert fitted(replace(config, use_gpu=True), cpus=cpus, gpus=gpus) == (workers, True)


def test_a_range_on_cpus_ignores_available_gpus():
    config = ClusterConfig(num_workers="2-8", use_gpu=False)

    assert fitted(config, cpus=8, gpus=3) == (7, False)


def test_by_default_there_is_one_worker_per_gpu():
    assert fitted(ClusterConfig(), cpus=64, gpus=4) == (4, True)
    assert fitted(ClusterConfig(use_gpu=True), cpus=64, gpus=4) == (4, True)


def test_by_default_there_is_one_worker_without_gpus():
    assert fitted(ClusterConfig(), cpus=64) == (1, False)
    assert fitted(ClusterConfig(use_gpu=False), cpus=64, gpus=4) == (1, False)


def test_machines_without_gpus_take_data_tasks_but_no_gpu_workers():
    config = ClusterConfig(cpus_per_worker=4)
    head, data = resources(), [resources(cpus=32)] * 4
    machines = [head, *data, resources(cpus=33, gpus=8), resources(cpus=20, gpus=8)]

    assert fit_to_machines(replace(config, num_workers="1-16"), machines).num_workers == 8 + 5
    with pytest.raises(InputError, match="request fewer"):
        fit_to_machines(replace(config, num_workers=14), machines)
    whole = [head, *data, *[resources(cpus=32, gpus=8)] * 8]
    assert fit_to_machines(config, whole) == replace(config, num_workers=64, use_gpu=True)
    with pytest.raises(InputError, match="64 x 4, and Ray Data needs 1 more CPU"):
        fit_to_machines(config, [head, *[resources(cpus=32, gpus=8)] * 8])
    told = "cluster.num_workers is 1 with one GPU each, but the cluster has 0 GPUs and 128 CPUs"
    with pytest.raises(InputError, match=told):
        fit_to_machines(replace(config, use_gpu=True), [head, *data])


def test_other_settings_are_kept():
    config = ClusterConfig(num_workers="1-4", cpus_per_worker=2, zero_stage=3, offload="all")

    found = fit_to_machines(config, [resources(cpus=9)])

    assert found == replace(config, num_workers=4, use_gpu=False)


def test_too_few_gpus_for_the_workers_are_refused():
    told = "cluster.num_workers is 4 with one GPU each, but the cluster has 3 GPUs and 64 CPUs; "
    assert refusal(ClusterConfig(num_workers=4), cpus=64, gpus=3).startswith(told)
    assert refusal(ClusterConfig(num_workers="4-8"), cpus=64, gpus=3).startswith(told)
    assert "--cluster.use_gpu False" in refusal(ClusterConfig(num_workers=4), cpus=64, gpus=3)


def test_requested_gpus_that_are_missing_are_refused():
    told = "cluster.num_workers is 1 with one GPU each, but the cluster has 0 GPUs and 64 CPUs"
    assert told in refusal(ClusterConfig(use_gpu=True), cpus=64)


@pytest.mark.parametrize("asked", [3, "3-8"])
def test_too_few_cpus_for_the_minimum_of_workers_are_refused(asked: int | str):
    config = ClusterConfig(num_workers=asked, cpus_per_worker=2)

    assert refusal(config, cpus=6) == (
        "cluster.num_workers x cluster.cpus_per_worker is 3 x 2, and Ray Data needs 1 more CPU: "
        "7 CPUs, each worker's on one machine, but the cluster has 0 GPUs and 6 CPUs; "
        "request fewer"
    )
    assert fitted(config, cpus=7) == (3, False)


@pytest.mark.parametrize("cpus", [0, 0.5, 1])
def test_a_cluster_with_a_cpu_only_for_ray_data_is_refused(cpus: float):
    told = f"but the cluster has 0 GPUs and {int(cpus)} CPUs; request fewer"

    refused = refusal(ClusterConfig(), cpus=cpus)
    assert "Ray Data needs 1 more CPU: 2 CPUs, " in refused
    assert told in refused


configs = st.builds(
    ClusterConfig,
    num_workers=st.none()
    | st.integers(1, 9)
    | st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda drawn: f"{drawn[0]}-{sum(drawn)}"),
    use_gpu=st.none() | st.booleans(),
    cpus_per_worker=st.integers(1, 4),
)


def number_fitting(config: ClusterConfig, cpus: int, gpus: int) -> int:
    try:
        return int(fit_to_machines(config, [resources(cpus=cpus, gpus=gpus)]).num_workers or 0)
    except InputError:
        return 0


@given(configs, st.integers(0, 40), st.integers(0, 9))
def test_the_fitted_workers_never_exceed_the_resources(config: ClusterConfig, cpus: int, gpus: int):
    workers = number_fitting(config, cpus, gpus)
    if workers == 0:
        return
    least, most = config.worker_bounds or (1, 9)
    assert least <= workers <= most
    assert workers * config.cpus_per_worker < cpus
    if fit_to_machines(config, [resources(cpus=cpus, gpus=gpus)]).use_gpu:
        assert workers <= gpus


@given(configs, st.integers(0, 40), st.integers(0, 9))
def test_the_fitted_number_also_fits_as_a_fixed_number(config: ClusterConfig, cpus: int, gpus: int):
    if number_fitting(config, cpus, gpus):
        found = fit_to_machines(config, [resources(cpus=cpus, gpus=gpus)])
        assert fit_to_machines(found, [resources(cpus=cpus, gpus=gpus)]) == found


@given(configs.filter(lambda c: c.num_workers is not None), st.integers(0, 40), st.integers(0, 9))
def test_more_cpus_never_mean_fewer_workers(config: ClusterConfig, cpus: int, gpus: int):
    assert number_fitting(config, cpus, gpus) <= number_fitting(config, cpus + 1, gpus)


def test_a_run_grows_with_its_cluster_up_to_its_range():
    config = ClusterConfig(num_workers="2-4")

    assert [number_fitting(config, cpus, 0) for cpus in range(2, 9)] == [0, 2, 3, 4, 4, 4, 4]
    assert [number_fitting(config, 64, gpus) for gpus in range(1, 7)] == [0, 2, 3, 4, 4, 4]


def num_on(config: ClusterConfig, *machines: dict[str, float]) -> int:
    """Return how many workers fit on several machines; 0 if too few do."""
    try:
        return int(fit_to_machines(config, machines).num_workers or 0)
    except InputError:
        return 0


def test_each_worker_has_its_cpus_on_one_machine():
    machines = [resources(cpus=3)] * 3

    assert num_on(ClusterConfig(num_workers=3, cpus_per_worker=2), *machines) == 3
    assert num_on(ClusterConfig(num_workers=4, cpus_per_worker=2), *machines) == 0
    assert num_on(ClusterConfig(num_workers="1-9", cpus_per_worker=2), *machines) == 3
    assert num_on(ClusterConfig(num_workers="1-9", cpus_per_worker=4), *machines) == 0


def test_a_worker_that_fits_on_no_single_machine_is_refused():
    with pytest.raises(InputError) as caught:
        fit_to_machines(ClusterConfig(num_workers=4, cpus_per_worker=2), [resources(cpus=3)] * 3)

    assert str(caught.value) == (
        "cluster.num_workers x cluster.cpus_per_worker is 4 x 2, and Ray Data needs 1 more CPU: "
        "9 CPUs, each worker's on one machine, but the cluster has 0 GPUs and 9 CPUs; "
        "request fewer"
    )


def test_an_evaluator_s_cpus_are_left_to_it():
    three = [resources(cpus=3)]
    assert fit_to_machines(ClusterConfig(num_workers=1), three, evaluator_cpus=1).num_workers == 1
    ranged = ClusterConfig(num_workers="1-9")
    assert fit_to_machines(ranged, [resources(cpus=8)], evaluator_cpus=3).num_workers == 4
    with pytest.raises(InputError) as caught:
        fit_to_machines(ClusterConfig(num_workers=2), three, evaluator_cpus=1)
    assert str(caught.value) == (
        "cluster.num_workers x cluster.cpus_per_worker is 2 x 1, and Ray Data needs 1 more CPU, "
        "and the evaluator 1: 4 CPUs, each worker's on one machine, but the cluster has 0 GPUs "
        "and 3 CPUs; request fewer, or evaluate with --evaluation.where within"
    )
    with pytest.raises(InputError, match=r"evaluation\.cpus is 4, all on one machine, but"):
        fit_to_machines(ClusterConfig(num_workers=1), three * 4, evaluator_cpus=4)


@pytest.mark.parametrize("use_gpu", [None, True])
def test_a_worker_has_its_gpu_and_its_cpus_on_one_machine(use_gpu: bool | None):
    config = ClusterConfig(num_workers="1-9", cpus_per_worker=2, use_gpu=use_gpu)
    apart = [resources(gpus=4), resources(cpus=64)]

    assert num_on(config, *apart) == 0
    assert num_on(replace(config, use_gpu=False), *apart) == 9
    assert num_on(config, resources(gpus=4, cpus=5), resources(cpus=64)) == 2
    assert num_on(config, resources(gpus=4, cpus=5), resources(gpus=1, cpus=64)) == 3


def test_the_spare_cpu_may_be_on_any_machine():
    config = ClusterConfig(num_workers="1-9")

    assert num_on(config, resources(cpus=2), resources(cpus=2)) == 3
    assert num_on(config, resources(cpus=2, gpus=2), resources(cpus=1)) == 2
    assert num_on(replace(config, cpus_per_worker=2), resources(cpus=2), resources(cpus=2)) == 1
    assert num_on(replace(config, cpus_per_worker=2), resources(cpus=2), resources(cpus=3)) == 2


def test_nothing_fits_on_a_cluster_without_machines():
    assert num_on(ClusterConfig()) == 0


@given(
    configs,
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=5),
)
def test_several_machines_fit_no_more_than_one_of_their_total_size(
    config: ClusterConfig, sizes: list[tuple[int, int]]
):
    cpus, gpus = (sum(size[i] for size in sizes) for i in range(2))
    several = num_on(config, *(resources(cpus=each[0], gpus=each[1]) for each in sizes))

    assert several <= number_fitting(config, cpus, gpus)


def test_a_range_takes_what_other_jobs_leave_free():
    config = ClusterConfig(num_workers="2-8", cpus_per_worker=2)
    machines = [resources(cpus=9), resources(cpus=8)]

    def workers(*free: int) -> int:
        left = [resources(cpus=cpus) for cpus in free]
        return int(fit_to_machines(config, machines, free=left).num_workers or 0)

    assert workers(9, 8) == 8
    assert workers(9, 0) == 4
    assert workers(5, 3) == 3
    assert workers(1, 1) == 2, "the least are waited for"


def test_a_fixed_number_waits_for_what_other_jobs_hold():
    found = fit_to_machines(
        ClusterConfig(num_workers=4), [resources(cpus=9)], free=[resources(cpus=1)]
    )
    assert found.num_workers == 4


def test_a_ray_that_starts_too_slowly_is_a_lost_attempt(monkeypatch):
    def start(**_):
        raise RuntimeError("The current node timed out during startup. ...")

    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(LostError, match="did not start in time") as caught:
        ray_cluster.start_local(num_cpus=1)
    assert caught.value.signature == ""  # so it may be retried repeatedly


@pytest.fixture
def steps(monkeypatch):
    """What happens to a Ray that is only noted, in order."""
    happened = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: happened.append("started"))
    monkeypatch.setattr(ray, "shutdown", lambda: happened.append("ended"))

    def warm():
        time.sleep(0.2)
        happened.append("warm")

    monkeypatch.setattr(ray_cluster, "warm_ray_data", warm)
    return happened


@pytest.mark.parametrize("address", [None, "", "127.0.0.1:6379"])
def test_a_local_ray_that_will_train_is_warm_before_it_ends(steps, monkeypatch, address):
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with ray_cluster.ray_cluster(ClusterConfig(), will_train=True):
        pass
    assert steps == ["started", *["warm"] * (not address), "ended"]


def test_an_import_that_fails_ends_the_ray_that_was_started(steps):
    with (
        pytest.raises(ModuleNotFoundError),
        ray_cluster.ray_cluster(ClusterConfig(), imports=("no_such_module",), will_train=True),
    ):
        pass
    assert steps == ["started", "warm", "ended"]


def test_the_processes_of_a_local_ray_keep_what_they_free(steps, monkeypatch):
    monkeypatch.setattr(ray_cluster, "keep_freed_memory", lambda: steps.append("kept"))
    with ray_cluster.ray_cluster(ClusterConfig()):
        pass
    assert steps == ["kept", "started", "ended"]


def test_a_ray_that_goes_away_meanwhile_does_not_trouble_the_warming(monkeypatch):
    def read(*_, **__):
        raise ray.exceptions.RaySystemError("gone")

    monkeypatch.setattr(ray.data, "range", read)
    ray_cluster.warm_ray_data()


@pytest.mark.parametrize(
    ("config", "machines", "count"),
    [
        (ClusterConfig(num_workers=2), [resources(cpus=9)], 4),  # one CPU is Ray Data's
        (ClusterConfig(num_workers=1, cpus_per_worker=2), [resources(cpus=4)], 1),
        (ClusterConfig(num_workers=2), [resources(cpus=32, gpus=8)], 4),
        (ClusterConfig(), [resources(cpus=32, gpus=8)], 1),
        (ClusterConfig(num_workers="1-3"), [resources(cpus=32, gpus=7)], 2),
        (ClusterConfig(num_workers=3), [resources(cpus=9, gpus=2), resources(cpus=9, gpus=4)], 2),
    ],
)
def test_runs_that_fit_at_once_are_counted_by_their_workers(
    config: ClusterConfig, machines: list[dict[str, float]], count: int
):
    assert count_fitting_runs(config, machines) == count


@pytest.mark.parametrize(("evaluator_cpus", "count"), [(0, 4), (1, 2), (2, 2), (3, 1)])
def test_each_run_needs_the_cpus_of_its_evaluator(evaluator_cpus: int, count: int):
    config = ClusterConfig(num_workers=2)
    found = count_fitting_runs(config, [resources(cpus=9)], evaluator_cpus=evaluator_cpus)
    assert found == count
    with pytest.raises(InputError, match="and the evaluator 7: 10 CPUs"):
        count_fitting_runs(config, [resources(cpus=9)], evaluator_cpus=7)


def test_runs_of_which_not_one_fits_are_refused():
    with pytest.raises(InputError, match=r"cluster\.num_workers is 3 with one GPU each"):
        count_fitting_runs(ClusterConfig(num_workers=3), [resources(cpus=9, gpus=2)])
