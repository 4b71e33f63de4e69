"""What the sweep does when Tune decides; real schedules are in ``tests/integration``."""

import pickle
from pathlib import Path
from types import SimpleNamespace

from made_sweep import METRIC, leave, trials_in
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from rm_ray.config.sweep import AshaConfig
from rm_ray.storage import Storage
from rm_ray.sweep.follower import STEP, WORST
from rm_ray.sweep.record import mark, read_mark
from rm_ray.sweep.scheduling import NEVER, Watch, make_scheduler, over_first
from rm_ray.sweep.trials import Trial

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


class Processes:
    """Remembers what it was asked to do."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []

    def start(self, trial: Trial) -> None:
        self.started.append(trial.name)

    def stop(self, name: str) -> None:
        self.stopped.append(name)


def watch(folder: Storage, trials: list[Trial]) -> tuple[Watch, Processes]:
    processes = Processes()
    return Watch(trials, METRIC, folder, processes), processes  # type: ignore[arg-type]


def of_tune(trial: Trial) -> SimpleNamespace:
    return SimpleNamespace(config={"trial": trial.name})


def test_trials_that_are_over_are_not_started_again(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.5)
    leave(folder, trials[1], 0.5, finished=False)
    mark(folder, trials[1].name, "stopped early", "by ASHA")
    leave(folder, trials[2], 0.5, finished=False)
    one, processes = watch(folder, trials)
    for trial in trials:
        one.on_trial_start(0, [], of_tune(trial))
    assert processes.started == [trials[2].name, trials[3].name]


def test_a_trial_that_tune_completes_before_its_end_was_stopped_early(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.5, 0.5, finished=False)
    leave(folder, trials[1], 0.5, 0.5, 0.5, 0.5)
    leave(folder, trials[2], 0.5, 0.5, 0.5, 0.5, finished=False)  # all of its steps
    mark(folder, trials[3].name, "interrupted", "by someone")
    one, processes = watch(folder, trials)
    for trial in trials:
        one.on_trial_complete(0, [], of_tune(trial))
    assert processes.stopped == [trials[0].name]
    assert read_mark(folder, trials[0].name) == {
        "ending": "stopped early", "cause": "by ASHA at step 10",
    }  # fmt: skip
    assert read_mark(folder, trials[2].name) is None
    assert (read_mark(folder, trials[3].name) or {})["ending"] == "interrupted"


def test_a_trial_that_tune_lost_sight_of_is_stopped_and_tried_again_later(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    one, processes = watch(folder, trials)
    one.on_trial_error(0, [], of_tune(trials[0]))
    assert processes.stopped == [trials[0].name]
    assert (read_mark(folder, trials[0].name) or {})["ending"] == "interrupted"


def test_tune_s_copy_of_its_settings_has_nothing_of_the_environment(tmp_path: Path):
    one, _ = watch(*trials_in(tmp_path))
    assert vars(pickle.loads(pickle.dumps(one))) == {}


def test_asha_stops_what_is_worse_than_the_median_of_those_that_came_as_far():
    """By the rule of the paper with a reduction factor of 2, at the steps 5, 10 and 20."""
    asha = make_scheduler(AshaConfig(grace_steps=5, reduction_factor=2))
    asha.set_search_properties(METRIC, "min")
    tried = [SimpleNamespace(trial_id=str(i)) for i in range(4)]
    for trial in tried:
        asha.on_trial_add(None, trial)

    def decide(number: int, step: int, loss: float) -> str:
        return asha.on_trial_result(None, tried[number], {STEP: step, METRIC: loss})

    assert decide(0, 3, 9.0) == CONTINUE  # grace
    assert decide(0, 5, 0.5) == CONTINUE  # the first
    assert decide(1, 5, 0.4) == CONTINUE  # better than 0.5
    assert decide(2, 5, 0.6) == STOP  # worse than 0.45
    assert decide(2, 5, 0.6) == CONTINUE  # told again, as after a restart
    assert decide(0, 7, 9.0) == CONTINUE  # between the rungs
    assert decide(0, 10, 0.3) == CONTINUE
    assert decide(1, 11, 0.35) == STOP  # worse than 0.3 at the rung of 10
    assert asha.on_trial_result(None, tried[0], {}) == CONTINUE  # no news


def test_without_asha_every_trial_goes_on():
    assert isinstance(make_scheduler(None), FIFOScheduler)


def test_trials_that_are_over_are_heard_first_and_judge_the_others(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.9, finished=False)
    leave(folder, trials[1], 0.5)
    leave(folder, trials[2], 0.6, finished=False)
    mark(folder, trials[2].name, "stopped early", "by ASHA")
    heard = over_first(trials, folder, METRIC)
    assert heard == [trials[1], trials[2], trials[0], trials[3]]
    asha = make_scheduler(AshaConfig(grace_steps=5, reduction_factor=2))
    asha.set_search_properties(METRIC, "min")
    losses = {trials[0].name: 0.9, trials[1].name: 0.5, trials[2].name: 0.6, trials[3].name: WORST}
    decisions = []
    for one in heard:
        trial = SimpleNamespace(trial_id=one.name)
        asha.on_trial_add(None, trial)
        decisions.append(asha.on_trial_result(None, trial, {STEP: 5, METRIC: losses[one.name]}))
    assert decisions == [CONTINUE, STOP, STOP, STOP]


def test_more_grace_than_any_step_is_no_error_of_tune_s():
    assert isinstance(make_scheduler(AshaConfig(grace_steps=2 * NEVER)), TrialScheduler)
