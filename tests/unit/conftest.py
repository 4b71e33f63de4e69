import os

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")  # a busy machine is no failure


def pytest_runtest_teardown() -> None:
    """Undo what a command sets for the processes it starts: other tests start some too."""
    os.environ.pop("PYTHONSAFEPATH", None)
