"""The result of an audit, for people and for machines."""

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from tickerplant.audit.findings import Finding, Findings
from tickerplant.audit.sources import Figures


class AuditReport(msgspec.Struct):
    """What was proven and what was found. `figures`: for each part (log, exchange, recording) what was counted."""

    session: int
    is_complete: bool
    finding_count: int
    by_cause: dict[str, int]
    figures: dict[str, Figures]
    findings: list[Finding]


def report_of(findings: Findings, figures: dict[str, Figures]) -> AuditReport:
    """The report, findings in the order of time."""
    return AuditReport(
        session=findings.session,
        is_complete=findings.count == 0,
        finding_count=findings.count,
        by_cause={str(cause): count for cause, count in sorted(findings.counts.items())},
        figures=figures,
        findings=sorted(findings.kept, key=lambda finding: finding.from_ns),
    )


def as_lines(report: AuditReport) -> Iterator[str]:
    """The report as text: figures, then a table of findings, then the verdict."""
    yield f"session {report.session}"
    for part, figures in report.figures.items():
        words = ", ".join(_figure(name, value) for name, value in figures.items())
        yield f"  {part}: {words}"
    if report.findings:
        yield ""
        yield from _table(report.findings)
        hidden = report.finding_count - len(report.findings)
        if hidden:
            yield f"and {hidden:,} more"
        yield ""
    yield _verdict(report)


def _verdict(report: AuditReport) -> str:
    if report.is_complete:
        return "complete: every message is accounted for"
    causes = ", ".join(f"{count:,} {cause}" for cause, count in report.by_cause.items())
    return f"not complete: {report.finding_count:,} findings ({causes})"


def _figure(name: str, value: int | str | bool) -> str:  # noqa: FBT001  # a figure may be a truth
    if isinstance(value, bool):
        return f"{name}: {'yes' if value else 'no'}"
    return f"{value:,} {name}" if isinstance(value, int) else f"{value} {name}"


def _table(findings: list[Finding]) -> Iterator[str]:
    heads = ("cause", "from (UTC)", "to", "where", "stream", "messages", "what")
    rows = [heads, *(_row(finding) for finding in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]])


def _row(finding: Finding) -> tuple[str, ...]:
    what = f"{finding.ticker}: {finding.what}" if finding.ticker else finding.what
    return (
        str(finding.cause),
        date_text(finding.from_ns),
        date_text(finding.to_ns) if finding.to_ns != finding.from_ns else "",
        finding.where,
        finding.stream,
        _range_text(finding),
        what,
    )


def _range_text(finding: Finding) -> str:
    if not finding.from_seq:
        return ""
    return f"{finding.from_seq}-{finding.to_seq or '?'}"


def date_text(time_ns: int) -> str:
    """UTC with microseconds; a dash for 0."""
    if not time_ns:
        return "-"
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return str(time_ns)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{nanoseconds // 1000:06d}"
