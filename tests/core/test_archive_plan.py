"""Which step of archiving is due: in order, for any evidence, and never without end."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.archive_plan import (
    ARCHIVED_TABLES,
    Content,
    Due,
    Evidence,
    LocalPart,
    PartEvidence,
    PartFile,
    Step,
    add_checks,
    all_due,
    check_names,
    decode_manifest,
    differing,
    encode_manifest,
    is_archived,
    manifest_path,
    new_manifest,
    next_due,
    parse_manifest_path,
    part_path,
    shrinkage,
    step_done,
    wrapped,
)
from tickerplant.core.tables import TABLES
from tickerplant.errors import StoreError

DAY = date(2026, 11, 20)
BBO = TABLES["bbo"]


def file_of(part: int, rows: int, seq: int = 0) -> PartFile:
    return PartFile(
        part=part,
        path=part_path("bbo", DAY, part, f"{rows:064x}"),
        row_count=rows,
        file_bytes=10 * rows,
        sha256=f"{rows:064x}",
        first_ns=1,
        last_ns=2,
        checks={"seq": seq},
    )


def part_of(part: int, rows: int, **values) -> PartEvidence:
    return PartEvidence(part, Content(rows, {"seq": 0}), **values)


def manifest_of(*files: PartFile):
    return new_manifest(BBO, DAY, list(files))


def steps(evidence: Evidence) -> list[tuple[Step, int | None]]:
    return [tuple(due) for due in all_due(BBO, DAY, evidence)]


def test_everything_is_due_where_there_is_nothing() -> None:
    evidence = Evidence([part_of(3, 5), part_of(7, 9)], None, 0, False, False, True)
    parts = [(step, part) for part in (3, 7) for step in (Step.EXPORT, Step.VERIFY, Step.UPLOAD)]
    rest = [Step.MANIFEST, Step.CLEAN, Step.RECORD, Step.LOAD, Step.CONVERT]
    assert steps(evidence) == [*parts, *((step, None) for step in rest)]


def test_an_empty_day_gets_a_manifest() -> None:
    assert steps(Evidence([]))[0] == (Step.MANIFEST, None)
    assert steps(Evidence([], manifest_of())) == []


def test_a_local_file_is_read_again_before_it_counts() -> None:
    local = LocalPart(file_of(0, 5))
    assert next_due(Evidence([part_of(0, 5, local=local)])) == Due(Step.VERIFY, 0)
    verified = local._replace(is_verified=True)
    assert next_due(Evidence([part_of(0, 5, local=verified)])) == Due(Step.UPLOAD, 0)
    uploaded = part_of(0, 5, local=verified, is_uploaded=True)
    assert next_due(Evidence([uploaded])) == Due(Step.MANIFEST)
    assert next_due(Evidence([part_of(0, 6, local=verified)])) == Due(Step.EXPORT, 0)


def test_only_the_part_with_more_rows_is_made_again() -> None:
    evidence = Evidence([part_of(0, 5), part_of(1, 8)], manifest_of(file_of(0, 5), file_of(1, 7)))
    assert [part for _step, part in steps(evidence)] == [1, 1, 1, None, None]
    other_values = Evidence([part_of(0, 5)], manifest_of(file_of(0, 5, seq=1)))
    assert steps(other_values)[0] == (Step.EXPORT, 0)


def test_fewer_rows_than_archived_are_told() -> None:
    manifest = manifest_of(file_of(0, 5), file_of(1, 7))
    assert shrinkage(Evidence([part_of(0, 5), part_of(1, 9)], manifest)) == ""
    assert "part 1, the store only 6" in shrinkage(
        Evidence([part_of(0, 5), part_of(1, 6)], manifest)
    )
    assert "part 0, the store only 0" in shrinkage(Evidence([part_of(1, 7)], manifest))


parts = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.none() | st.tuples(st.integers(1, 3), st.booleans()),
        st.booleans(),
        st.none() | st.integers(1, 3),
    ),
    max_size=3,
)


@given(parts, st.booleans(), st.integers(0, 2), st.booleans(), st.booleans(), st.booleans())
def test_from_any_evidence_the_steps_end_archived(
    drawn, has_manifest, leftovers, recorded, loaded, convertible
) -> None:
    evidences, files = [], []
    for number, (rows, local, uploaded, archived) in enumerate(drawn):
        found = None if local is None else LocalPart(file_of(number, local[0]), local[1])
        evidences.append(part_of(number, rows, local=found, is_uploaded=uploaded))
        if archived is not None:
            files.append(file_of(number, archived))
    manifest = manifest_of(*files) if has_manifest else None
    evidence = Evidence(evidences, manifest, leftovers, recorded, loaded, convertible)
    due = all_due(BBO, DAY, evidence)
    order = list(Step)
    for step in due:
        evidence = step_done(BBO, DAY, evidence, step)
    assert is_archived(evidence)
    assert next_due(evidence) is None
    assert len(due) == len(set(due)) <= 3 * len(drawn) + 5
    whole = [one.step for one in due if one.part is None]
    assert whole == sorted(whole, key=order.index)


def test_manifests_and_paths_read_as_written() -> None:
    manifest = manifest_of(file_of(1, 7), file_of(0, 5))
    path = manifest_path("bbo", DAY)
    assert path == "bbo/day=2026-11-20/manifest.json"
    assert decode_manifest(encode_manifest(manifest), path) == manifest
    assert (manifest.row_count, [one.part for one in manifest.parts]) == (12, [0, 1])
    assert parse_manifest_path(path) == ("bbo", DAY)
    for wrong in ("bbo/day=2026-13-20/manifest.json", "x/day=2026-11-20/manifest.json", "bbo/m"):
        assert parse_manifest_path(wrong) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is no manifest"),
        (encode_manifest(manifest_of()).replace(b'"format": 1', b'"format": 2'), "newer program"),
        (encode_manifest(manifest_of()).replace(b"11-20", b"11-19"), "is the manifest of bbo"),
    ],
)
def test_what_is_no_manifest_of_that_place_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(StoreError, match=told):
        decode_manifest(content, manifest_path("bbo", DAY))


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_sums_run_over_like_64_bits(values) -> None:
    total = {"seq": None}
    for value in values:
        total = add_checks(total, {"seq": value})
    present = [value for value in values if value is not None]
    assert total == {"seq": wrapped(sum(present)) if present else None}


def test_differences_are_told_in_words() -> None:
    wanted = Content(5, {"seq": 1, "g": 2})
    assert differing(wanted, Content(5, {"seq": 1, "g": 2})) == ""
    assert differing(wanted, Content(4, {"seq": 1, "g": 2})) == "4 rows instead of 5"
    assert differing(wanted, Content(5, {"seq": 0, "g": None})) == "other sums of seq, g"


def test_every_column_of_every_table_is_summed() -> None:
    for name in ARCHIVED_TABLES:
        table = TABLES[name]
        assert check_names(table)[: len(table.columns)] == list(table.column_names)
