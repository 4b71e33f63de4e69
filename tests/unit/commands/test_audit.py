"""The command that audits data; ``tests/integration/test_audit.py`` runs it on Ray."""

from pathlib import Path

import pytest

from rm_ray.commands.audit import AuditCommand, main
from rm_ray.config.recipe import parse_config
from rm_ray.errors import InputError


def test_sets_are_those_named_or_else_those_of_the_recipe():
    config = parse_config({"evaluation": {"sets": {"chat": "chat.jsonl"}}})
    assert AuditCommand(config=config).sets == {"chat": ("chat.jsonl",)}
    named = AuditCommand(config=config, against=("rb=a.jsonl", "mine=b.jsonl", "rb=c.jsonl=40"))
    assert named.sets == {"rb": ("a.jsonl", "c.jsonl=40"), "mine": ("b.jsonl",)}


@pytest.mark.parametrize("entry", ["bench.jsonl", "=bench.jsonl", "bench=", "a b=x"])
def test_a_set_without_name_or_source_is_refused(entry: str):
    with pytest.raises(InputError, match="--against must be a list of NAME=SOURCE"):
        AuditCommand(against=(entry,))


def test_similarity_is_a_share_that_bands_can_find():
    with pytest.raises(InputError, match=r"--similarity must be between 0.7 and 1, got 0.6"):
        AuditCommand(similarity=0.6)


def test_an_output_that_cannot_be_written_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    assert main(["--data", "builtin:train", "--output", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().out
