from rm_ray.runs import startup as startup_module
from rm_ray.runs.startup import Startup, describe_startup


def test_each_phase_starts_at_the_end_of_the_previous_one(monkeypatch):
    times = iter([102.0, 107.5, 108.0])
    monkeypatch.setattr(startup_module.time, "time", lambda: next(times))
    startup = Startup(began=100.0)
    assert startup.seconds == {}
    for phase in ("imports", "Ray", "model"):
        startup.end(phase)
    assert startup.seconds == {"imports": 2.0, "Ray": 5.5, "model": 0.5}


def test_the_phases_are_formatted_as_one_line():
    line = describe_startup({"imports": 2.0, "Ray": 3.25})
    assert line == "first step after 5.2 s: imports 2.0, Ray 3.2"
