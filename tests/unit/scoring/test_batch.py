import json
from pathlib import Path

import pytest

from rm_ray.config.scoring import Rows, ScoringModel
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.data.sources.mixture import select
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError
from rm_ray.scoring.batch import score, unscored_chunks
from rm_ray.scoring.output import ROWS_PER_CHUNK, chunk_name


def test_rows_are_split_into_chunks_and_finished_ones_are_skipped(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    num_rows = 2 * ROWS_PER_CHUNK + 3
    rows = [{"prompt": "a", "response": str(i)} for i in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (selection,) = select([SourceSpec.parse(str(path))], 0, any_of=("response",))

    chunks = list(unscored_chunks(4, selection, {chunk_name(4, 1)}))

    assert [(chunk["fragment"][0], chunk["chunk"][0]) for chunk in chunks] == [(4, 0), (4, 2)]
    assert [number for chunk in chunks for number in chunk["row"][0]] == [
        *range(ROWS_PER_CHUNK), *range(2 * ROWS_PER_CHUNK, num_rows),
    ]  # fmt: skip
    assert json.loads(chunks[1]["json"][0][2]) == rows[-1]
    assert list(unscored_chunks(4, selection, {chunk_name(4, i) for i in range(3)})) == []


def test_conversations_longer_than_the_model_s_positions_are_refused_before_anything_is_read(
    tmp_path: Path,
):
    fields = {
        "model_type": "llama",
        "num_labels": 1,
        "max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = ScoringModel(model=str(tmp_path), max_length=129)

    with pytest.raises(InputError, match=r"--max_length is 129, but --model .* has 128"):
        score(model, Rows(data=("nowhere.jsonl",)), None, ClusterConfig())


def test_a_model_without_statistics_is_refused_before_anything_is_read(exported: Path):
    model = ScoringModel(model=str(exported), rewards="standardized")
    with pytest.raises(InputError, match=r"has no reward_statistics\.json"):
        score(model, Rows(data=("nowhere.jsonl",)), None, ClusterConfig())
