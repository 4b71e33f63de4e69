from rm_ray.driver.going import Going


def test_a_stop_reaches_the_workers_while_there_are_some():
    asked: list[str] = []
    going = Going()

    assert not going.stop("too early")
    with going.stoppable(asked.append):
        assert going.stop("terminated")
    assert not going.stop("too late")  # the attempt is ended: what is asked for is on disk

    assert asked == ["too early", "terminated"]


def test_a_stop_reaches_no_workers_after_they_failed():
    asked: list[str] = []
    going = Going()

    try:
        with going.stoppable(asked.append):
            raise ConnectionError
    except ConnectionError:
        assert not going.stop("terminated")

    assert asked == []
