from typing import Any

import pytest
from given_settings import refusal_of

from rm_ray.config.checks import require, require_date
from rm_ray.config.recipe import parse_config
from rm_ray.errors import InputError


def test_a_broken_rule_is_reported_with_its_field_and_value():
    require(True, "batch.size", 0, "at least 1")
    with pytest.raises(InputError, match=r"^batch\.size must be at least 1, got 0$"):
        require(False, "batch.size", 0, "at least 1")


def test_a_date_may_be_omitted():
    require_date("data.template_date", None)
    require_date("data.template_date", "2026-11-28")
    with pytest.raises(InputError, match=r"must be a date such as 2026-11-28, got '2026-02-30'"):
        require_date("data.template_date", "2026-02-30")


@pytest.mark.parametrize(
    ("section", "field", "uri"),
    [
        ("run", "storage_path", "s3://AKIA:hunter2@bucket/runs"),
        ("mlflow", "tracking_uri", "http://ana:hunter2@mlflow.example.com:5000"),
        ("mlflow", "tracking_uri", "https://hunter2@mlflow.example.com:5000"),
        ("mlflow", "tracking_uri", "postgresql://ana:hunter2@db.example.com/mlflow"),
        ("run", "storage_path", "s3://bucket/runs?access_key=AKIA&secret_key=hunter2"),
        ("run", "storage_path", "s3://bucket/runs?region=eu&access_key=hunter2"),
        ("run", "storage_path", "abfs://runs@account/x?sig=hunter2"),
        ("data", "train", ["https://hunter2@example.com/pairs.jsonl"]),
        ("data", "train", ["https://example.com/pairs.jsonl?X-Amz-Signature=hunter2"]),
        ("data", "train", ["/there/is/pairs.jsonl", "https://example.com/p.jsonl?TOKEN=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl?password=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl?apikey=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl?accessToken=hunter2"]),
        ("mlflow", "tracking_uri", "postgresql://db/mlflow?sslpassword=hunter2"),
        ("data", "train", ["https://ana:hunter2@example.com/pairs.jsonl"]),
        ("data", "eval", ["https://ana:hunter2@example.com/pairs.jsonl"]),
        ("data", "eval", ["simplecache::https://ana:hunter2@example.com/pairs.jsonl"]),
        ("data", "eval", ["zip://*.jsonl::https://hunter2@example.com/pairs.zip"]),
        ("data", "eval", ["https://example.com/pairs.jsonl#token=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl;token=hunter2"]),
        ("data", "eval", ["https://example.com/pairs.jsonl?access%5Ftoken=hunter2"]),
        ("mlflow", "tracking_uri", "postgresql://ana:a/hunter2@db/mlflow"),
        ("mlflow", "tracking_uri", "postgresql://ana:a#hunter2@db/mlflow"),
        ("mlflow", "tracking_uri", "postgresql://ana:a?hunter2@db/mlflow"),
        ("model", "name_or_path", "https://ana:hunter2@example.com/model"),
        ("model", "tokenizer", "https://example.com/model?token=hunter2"),
    ],
)
def test_a_password_is_refused_and_not_repeated(section: str, field: str, uri: Any):
    message = refusal_of({section: {field: uri}})
    assert f"{section}.{field} must not contain a password" in message
    assert "environment" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("section", "field", "uri"),
    [
        ("run", "storage_path", "s3://bucket/runs?region=eu-west-1&scheme=https"),
        ("run", "storage_path", "abfs://runs@account.dfs.core.windows.net/x"),
        ("run", "storage_path", "sftp://ana@example.com/runs"),
        ("run", "storage_path", "/runs/a:b@c?token=x"),
        ("mlflow", "tracking_uri", "postgresql://ana@db.example.com/mlflow"),
        ("mlflow", "tracking_uri", "http://mlflow.example.com:5000?design=1"),
        ("data", "train", ("https://example.com/pairs.jsonl?version=2",)),
        ("data", "train", ("https://example.com:8080/pairs@v2.jsonl",)),
        ("data", "train", ("simplecache::https://example.com:8080/pairs@v2.jsonl",)),
        ("data", "train", ("hf://datasets/ana/pairs@main/data.parquet",)),
        ("run", "storage_path", "hdfs://namenode:8020/user/ana@example"),
    ],
)
def test_a_uri_without_a_secret_may_have_a_user_or_a_query(section: str, field: str, uri: Any):
    config = parse_config({section: {field: uri}})

    assert getattr(getattr(config, section), field) == uri


def test_a_malformed_uri_is_not_repeated():
    message = refusal_of({"run": {"storage_path": "s3://ana:hunter2@[bad/x"}})
    assert "run.storage_path must be a valid URI" in message
    assert "hunter2" not in message
