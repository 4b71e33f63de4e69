"""The report as Markdown and as a summary."""

from audit_report import REPORT

from rm_ray.audit.report import align, summarize, write_page


def test_the_summary_has_findings_sets_and_rules():
    lines = summarize(REPORT).splitlines()
    assert lines[0] == "98 of 100 rows read"
    assert lines[1] == "  refused        2  empty"
    assert "        5 duplicates         5.10%  repeat the prompt" in lines[2]
    assert "shared with bench (30 rows), in rows by what: prompt 2, 13-gram 1" in lines
    assert any("the longer response is better" in line and "0.600" in line for line in lines)
    assert lines[-2:] == [
        "languages: en 89.8%, de 10.2%",
        "median words: prompt 10, better 20, worse 15",
    ]


def test_the_page_has_a_table_of_each_part_and_the_first_findings():
    page = write_page(REPORT, "Audit of a.jsonl")
    assert page.startswith(
        "# Audit of a.jsonl\n\n98 of 100 rows were read. ![plots](plots/audit.png)"
    )
    assert "| duplicates | 5 | 5.10% | repeat the prompt, responses and labels" in page
    assert "- row 7 of a.jsonl: same prompt, responses and labels as row 2 of a.jsonl" in page
    assert "| bench | 30 | 2 | 1 | 0 |" in page
    assert "| the longer response is better | 0.600 | 0.500 to 0.700 | 90 |" in page
    assert "| x\\|y | 0.750 | 0.600 to 0.850 | 40 |" in page
    assert "| prompt | 98 | 11.5 | 3 | 10 | 30 |" in page
    assert "None" not in page


def test_what_the_findings_may_lack_is_said():
    lacking = {
        **REPORT, "rows_examined_by_models": 60, "rows_with_unfound_near_duplicates": 1200,
    }  # fmt: skip
    for text in (summarize(lacking), write_page(lacking, "Audit")):
        assert "islabelled: of the 60 rows that every model has a loss of" in text
        assert "ear duplicates: 1,200 rows or fewer may have some that were not found" in text
    assert "that were not found" not in summarize(REPORT) + write_page(REPORT, "Audit")


def test_figures_are_aligned_to_the_right():
    assert align([("a", "1"), ("bb", "100")]) == ["a     1", "bb  100"]
