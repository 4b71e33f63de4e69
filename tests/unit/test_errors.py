from rm_ray.errors import StoppedError


def test_a_stop_tells_where_and_of_which_step_its_checkpoint_is():
    stopped = StoppedError("terminated", 12)

    assert str(stopped) == "terminated at step 12; its newest checkpoint is of step 12"
    assert (stopped.reason, stopped.step) == ("terminated", 12)


def test_a_stop_whose_checkpoint_failed_tells_of_the_one_before():
    told = "terminated at step 12; its newest checkpoint is of step "

    assert str(StoppedError("terminated", 12, saved_step=10)) == told + "10"
    assert str(StoppedError("terminated", 12, saved_step=0)) == told + "0"
