import pytest
from made_run import make_run

from rm_ray.commands.log_to_mlflow import main


def test_a_folder_without_a_run_or_metrics_exits_with_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().out.startswith(f"error: '{tmp_path}' holds no run")
    assert main([make_run(tmp_path).folder]) == 2
    assert "has no metrics yet" in capsys.readouterr().out


def test_the_run_is_a_required_argument(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "the following arguments are required: run" in capsys.readouterr().err
