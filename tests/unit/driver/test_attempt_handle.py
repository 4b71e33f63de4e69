from rm_ray.driver.attempt_handle import AttemptHandle


def test_a_stop_reaches_the_workers_while_there_are_some():
    asked: list[str] = []
    attempt_handle = AttemptHandle()

    assert not attempt_handle.stop("too early")
    with attempt_handle.stoppable(asked.append):
        assert attempt_handle.stop("terminated")
    assert not attempt_handle.stop("too late")  # the attempt is ended: what is asked for is on disk

    assert asked == ["too early", "terminated"]


def test_a_stop_reaches_no_workers_after_they_failed():
    asked: list[str] = []
    attempt_handle = AttemptHandle()

    try:
        with attempt_handle.stoppable(asked.append):
            raise ConnectionError
    except ConnectionError:
        assert not attempt_handle.stop("terminated")

    assert asked == []
