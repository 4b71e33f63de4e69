from dataclasses import fields, replace
from typing import Any

from made_run import make_run

from rm_ray.commands.exits import ExitStatus
from rm_ray.commands.publish import PublishCommand, main, publish_end, publish_summary
from rm_ray.config.sections.hub import HubConfig
from rm_ray.publish import finish, registration
from rm_ray.publish.finish import PublishReport
from rm_ray.runs.versions import Version

REPO = "someone/rewards"


def report(states: dict[int, str], **about: Any) -> PublishReport:
    versions = [Version(step=s, tag=f"step-{s:08d}", state=state) for s, state in states.items()]
    about = {"main": None, "is_over": True, "problem": "", **about}
    return PublishReport(repo_id=REPO, versions=versions, **about)


def test_a_summary_of_everything_published_has_no_command():
    done = report({10: "published", 20: "published"}, main="step-00000010")
    assert publish_summary(done, "/runs/one", HubConfig(repo_id=REPO)).splitlines() == [
        "  published         step-00000010, step-00000020 on someone/rewards",
        "  main              step-00000010",
    ]


def test_a_summary_with_pending_versions_has_the_command_that_resumes(tmp_path):
    left = report({10: "refused", 20: "waiting"}, is_over=False, problem="the Hub is away")
    hub = HubConfig(repo_id=REPO, revision_prefix="a-", every="checkpoint")
    assert publish_summary(left, str(tmp_path / "a run"), hub).splitlines() == [
        "  published         nothing on someone/rewards",
        "  the run           is not finished; hub.every is 'checkpoint'",
        "  refused           step-00000010: the reasons are above",
        "  not published     step-00000020: the Hub is away",
        f"  to resume         python jobs/publish.py '{tmp_path}/a run' --repo_id {REPO} "
        "--private True --revision_prefix a-",
    ]


def test_every_option_but_the_run_is_in_the_hub_section():
    options = {field.name for field in fields(PublishCommand)}
    assert options - {"run"} <= {field.name for field in fields(HubConfig)}


def test_a_folder_without_a_run_and_a_run_without_a_repository_exit_with_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().out
    made = make_run(tmp_path, repo_id=None)
    assert main([made.folder]) == 2
    assert "--repo_id" in capsys.readouterr().out


def test_publishing_at_the_end_has_a_time_limit_and_ctrl_c_shows_the_command_that_resumes(
    endpoint, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "rm_ray.commands.publish")
    made = make_run(tmp_path, last_step=10, patience_s=0.01)
    made.save(10)
    made.finish()
    assert publish_end(made.config) == 0  # the run itself is finished
    assert "not published     main: not finished within 0 s" in caplog.text
    again = f"python jobs/publish.py {made.folder} --repo_id {REPO} --private True"
    assert again in caplog.text

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    caplog.clear()
    monkeypatch.setattr(finish, "finish_publishing", interrupted)
    assert publish_end(made.config) == ExitStatus.INTERRUPTED
    assert again in caplog.text


def test_a_run_without_a_repository_is_registered_by_rerunning_its_command(
    tmp_path, monkeypatch, caplog
):
    made = make_run(tmp_path, repo_id=None)
    config = replace(made.config, mlflow=replace(made.config.mlflow, registered_model="rewards"))
    monkeypatch.setattr(registration, "register_models", lambda *_: False)
    assert publish_end(config) == 0
    assert "to register it: rerun the same command" in caplog.text
