from rm_ray.commands.train import run_summary

RESULT = {
    "name": "a-run", "steps": 1200, "episodes": 76_800, "pairs_per_second": 12.345,
    "tokens_per_second": 6789.0, "seconds": 100.4, "workers": 2, "train_pairs": 5000,
    "eval_pairs": 0, "refused": [{"set": "train", "reason": "empty", "rows": 3}],
    "metrics": {"train/rm/accuracy": 0.75, "train/rm/loss": 0.5},
    "export": "/runs/a-run/export", "last_checkpoint": "/runs/a-run/checkpoint_2",
    "best_checkpoint": "/runs/a-run/checkpoint_1", "plots": "/runs/a-run/plots",
    "folder": "/runs/a-run", "mlflow_run_id": "abc", "mlflow_tracking_uri": "sqlite:////m.db",
    "mlflow_view": "mlflow ui", "layout": "packed", "computed_over_distinct_tokens": 1.0,
    "matrix_peak_ratio": 0.512, "startup": {"imports": 2.0, "Ray": 3.25},
    "attempts": [{}, {}], "time": {"goodput": 0.625, "steps": 50.0, "total": 80.0,
                                   "work lost and redone": 4.0},
}  # fmt: skip


def test_the_summary_shows_metrics_speed_and_places() -> None:
    page = run_summary(RESULT)
    lines = [line.split() for line in page.splitlines()]
    assert ["accuracy", "0.7500", "-"] in lines
    assert ["loss", "0.5000", "-"] in lines
    assert "run 'a-run': 1,200 steps, 76,800 pairs" in page
    assert "12.3 pairs/s, 6,789 tokens/s on 2 workers" in page
    assert "packed: 1.00 tokens computed per distinct token; 0.51 of the" in page
    assert "goodput 0.62: 50 s of 80 s trained; 2 attempts, 4 s of work redone" in page
    assert "first step after 5.2 s: imports 2.0, Ray 3.2" in page
    assert "5,000 to train on, 0 held out, 3 refused" in page
    for name in ("export", "last_checkpoint", "best_checkpoint", "plots", "mlflow_view"):
        assert RESULT[name] in page
    assert "/runs/a-run/result.json" in page


def test_the_summary_has_a_line_for_each_named_set() -> None:
    metrics = {**RESULT["metrics"], "eval/chat/accuracy": 0.5, "eval/chat/loss": 0.625}
    sets = {"chat": 1_200, "code": 3}
    page = run_summary({**RESULT, "metrics": metrics, "eval_pairs_by_set": sets})
    lines = [line.split() for line in page.splitlines()]
    assert ["chat", "accuracy", "0.5000,", "loss", "0.6250", "over", "1,200"] in lines
    assert ["code", "not", "evaluated", "over", "3"] in lines
    added = set(page.splitlines()) - set(run_summary(RESULT).splitlines())
    assert len(added) == 2
