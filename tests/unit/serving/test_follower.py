import threading

import torch
from made_run import make_run

from rm_ray.config.scoring import ScoringModel
from rm_ray.serving.follower import Follower


def test_a_better_model_is_taken_over_once_and_a_worse_one_is_not(tmp_path):
    run = make_run(tmp_path)
    run.save(10)
    taken: list[str] = []
    model = ScoringModel(model=run.folder)
    follower = Follower(
        model, torch.device("cpu"), "made@step-00000010", lambda found: taken.append(found.name)
    )
    follower.look()
    assert taken == []
    run.save(20)
    follower.look()
    follower.look()
    run.save(30)
    follower.look()
    assert taken == ["made@step-00000020"]


def test_a_model_without_room_in_memory_is_reported_and_the_one_before_serves(tmp_path, caplog):
    run = make_run(tmp_path)
    run.save(10)

    def no_room(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    Follower(ScoringModel(model=run.folder), torch.device("cpu"), "before", no_room).look()
    assert "no newer model is taken over: CUDA out of memory" in caplog.text


def test_what_cannot_be_loaded_is_reported_once_and_tried_again(tmp_path, caplog):
    run = make_run(tmp_path)
    taken: list[str] = []
    follower = Follower(
        ScoringModel(model=run.folder),
        torch.device("cpu"),
        "made@step-00000001",
        lambda found: taken.append(found.name),
    )
    follower.look()
    follower.look()
    assert caplog.text.count("no newer model is taken over") == 1
    run.save(10)
    follower.look()
    assert taken == ["made@step-00000010"]


def test_no_error_ends_the_following(tmp_path, caplog):
    run = make_run(tmp_path)
    run.save(10)
    taken: list[str] = []
    found = threading.Event()

    def take_over(model):
        taken.append(model.name)
        if len(taken) == 1:
            raise KeyError("a library's own")
        found.set()

    follower = Follower(ScoringModel(model=run.folder), torch.device("cpu"), "before", take_over)
    follower.start(0.01)
    assert found.wait(60)
    assert taken == ["made@step-00000010"] * 2
    assert 'no newer model is taken over: "a library\'s own"' in caplog.text
    assert "Traceback" in caplog.text
