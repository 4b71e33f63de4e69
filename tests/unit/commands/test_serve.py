import os
import signal

import pytest

from rm_ray.commands import serve
from rm_ray.commands.serve import describe_end, describe_start, stop_signal
from rm_ray.config.serving import Server
from rm_ray.serving.app import TOKEN
from rm_ray.serving.server import Totals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/nowhere"], "--model '/nowhere'"),
        (["--model", "", "--port", "8000"], "model must be a folder or a name on the Hub"),
        (["--model", "a/b", "--port", "70000"], "port must be from 1 to 65535, got 70000"),
        (["--model", "a/b", "--host", "0.0.0.0"], "set RM_RAY_SERVE_TOKEN in the environment"),
        (["--model", "{exported}", "--follow"], "is a plain folder, whose files may change"),
        (["--model", "a/b", "a/c", "--follow"], "--follow takes over newer versions of one model"),
        (["--model", "a/b", "a/b"], "model must be a list without repetitions"),
        (["--model", "{exported}", "--host", "203.0.113.7"], "cannot listen on host '203.0.113.7'"),
    ],
)
def test_what_cannot_be_served_is_refused_before_ray_starts(
    options, message, exported, capfd, monkeypatch
):
    if "203.0.113.7" in options:
        monkeypatch.setenv(TOKEN, "open-sesame")
    given = [option.replace("{exported}", str(exported)) for option in options]
    assert serve.main(given) == 2
    printed = capfd.readouterr().out
    assert message in printed
    assert "starting Ray" not in printed
    assert "open-sesame" not in printed


def test_the_first_signal_ends_the_waiting_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signal() as stop:
        stop.answers()
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_while_nothing_is_served_a_signal_interrupts():
    with stop_signal() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()  # if requests were answered nevertheless, nobody waits any more


def test_the_start_says_how_to_ask_and_never_the_token(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    text = describe_start("mine@step-00000020", Server(port=8123))
    assert "serving mine@step-00000020 at http://127.0.0.1:8123" in text
    assert "curl http://127.0.0.1:8123/v1/rewards -H 'Content-Type" in text
    monkeypatch.setenv(TOKEN, "secret")
    text = describe_start("mine", Server())
    assert "Bearer $RM_RAY_SERVE_TOKEN" in text
    assert "secret" not in text


def test_the_end_sums_up():
    totals = Totals(
        requests=1200, refused=3, failed=2, unanswered=0, rewards=19_200, tokens=1000, saved=0.6,
        seconds=125,
    )  # fmt: skip
    text = describe_end(totals)
    assert "2:05 minutes" in text
    assert "1,200, 3 of them refused, 2 failed" in text
    assert "19,200" in text
    assert "shared prefixes saved 60%" in text
    assert "not answered" not in text
