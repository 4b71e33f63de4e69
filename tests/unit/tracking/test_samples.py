from rm_ray.storage import Storage
from rm_ray.tracking.samples import read_samples


def test_the_samples_of_each_evaluation_become_a_table(tmp_path):
    run_folder = Storage.open(str(tmp_path))
    rows = [{"pair": 3, "prompt": "Why?"}]
    run_folder.write_json("samples/step-000005.json", rows)
    run_folder.write_text(
        "samples/step-000010.json.0123.tmp", "[{"
    )  # a draft left behind by a kill
    assert list(read_samples(run_folder)) == [("eval_samples/step-000005.json", rows)]


def test_the_samples_of_named_sets_follow_under_their_names(tmp_path):
    run_folder = Storage.open(str(tmp_path))
    rows = [{"pair": 3, "prompt": "Why?"}]
    for name in ("step-000005.json", "bench/step-000005.json"):
        run_folder.write_json(f"samples/{name}", rows)
    names = [name for name, _ in read_samples(run_folder)]
    assert names == ["eval_samples/step-000005.json", "eval_samples/bench/step-000005.json"]


def test_a_run_without_an_evaluation_has_no_samples(tmp_path):
    assert list(read_samples(Storage.open(str(tmp_path)))) == []
