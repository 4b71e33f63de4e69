import pickle

from rm_ray.serving.refusal import refuse


def test_a_refusal_travels_between_processes():
    error = refuse(503, "later", retry_after_s=4)
    assert pickle.loads(pickle.dumps(error.refusal)) == error.refusal
    assert str(error) == "later"
    assert error.refusal.retry_after_s == 4
