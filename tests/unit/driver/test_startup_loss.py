from rm_ray.cluster.timeouts import COMPANY_S, LOOK_EVERY_S, LOOKS
from rm_ray.driver.startup_loss import StartupLoss


def causes(num_looks: int, *, num_begun: int, num_fitting: int) -> list[str]:
    """Return the causes found in several looks at 4 workers."""
    loss = StartupLoss(4)
    found = (loss.find(num_begun=num_begun, num_fitting=num_fitting) for _ in range(num_looks))
    return [cause for cause in found if cause is not None]


def test_workers_that_start_in_time_are_waited_for():
    looks = int(COMPANY_S / LOOK_EVERY_S)

    assert causes(10 * looks, num_begun=0, num_fitting=4) == []
    assert causes(looks, num_begun=3, num_fitting=4) == []
    assert causes(10 * looks, num_begun=4, num_fitting=4) == []


def test_a_machine_lost_before_any_start_is_a_loss_after_several_looks():
    assert causes(LOOKS - 1, num_begun=0, num_fitting=3) == []
    assert causes(LOOKS, num_begun=0, num_fitting=3) == [
        "a machine was lost before the workers started"
    ]


def test_a_machine_that_comes_back_is_no_loss():
    loss = StartupLoss(4)
    for _ in range(5):
        assert [loss.find(num_begun=0, num_fitting=3) for _ in range(LOOKS - 1)] == [None, None]
        assert loss.find(num_begun=0, num_fitting=4) is None


def test_a_machine_lost_after_workers_started_is_detected_elsewhere():
    assert causes(10 * LOOKS, num_begun=4, num_fitting=3) == []


def test_workers_left_waiting_for_the_others_are_a_loss():
    found = causes(int(COMPANY_S / LOOK_EVERY_S) + 1, num_begun=3, num_fitting=4)

    assert found == ["only 3 of 4 workers started within 120 s"]
