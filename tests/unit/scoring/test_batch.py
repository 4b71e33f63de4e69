import json
from pathlib import Path

from rm_ray.data.sources.mixture import select
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.scoring.batch import unscored_chunks
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
