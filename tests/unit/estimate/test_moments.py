"""A worker's peak memory over the moments of a step."""

from rm_ray.estimate.moments import MemoryEstimate, Moment

BUILD = Moment(name="build", host=90)
START = Moment(name="start", weights=40)
BACKWARD = Moment(name="backward", weights=10, gradients=5, activations=20, buffers=1, host=30)
UPDATE = Moment(name="update", weights=10, gradients=8, optimizer=12, host=30)
ALL = (BUILD, START, BACKWARD, UPDATE)


def test_device_and_host_memory_peak_separately_on_a_gpu():
    estimated = MemoryEstimate(moments=ALL, on_gpu=True)
    assert (estimated.peak, estimated.device, estimated.machine) == (START, 40, 90)


def test_device_memory_is_host_memory_on_a_cpu():
    estimated = MemoryEstimate(moments=ALL, on_gpu=False)
    assert (estimated.peak, estimated.device, estimated.machine) == (BUILD, 90, 90)
    training = MemoryEstimate(moments=(BACKWARD, UPDATE), on_gpu=False)
    assert (training.peak, training.device) == (BACKWARD, 66)


def test_a_part_reports_its_peak_during_training():
    estimated = MemoryEstimate(moments=ALL, on_gpu=True)
    assert [estimated.part(part) for part in ("weights", "gradients", "optimizer")] == [10, 8, 12]
    assert [estimated.part(part) for part in ("activations", "buffers")] == [20, 1]


def test_plus_adds_to_the_given_parts_and_keeps_the_others():
    later = BACKWARD.plus("exchange", gradients=2, host=1)
    assert later == Moment(
        name="exchange", weights=10, gradients=7, activations=20, buffers=1, host=31
    )
    assert later.device == 38
