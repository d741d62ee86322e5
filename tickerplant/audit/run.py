"""An audit from its files to its report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tickerplant.audit.capture_run import CaptureRun
from tickerplant.audit.findings import Findings
from tickerplant.audit.log_audit import LogAudit
from tickerplant.audit.recording_audit import RecordingAudit
from tickerplant.audit.report import AuditReport, report_of
from tickerplant.audit.session_log import SessionLog, TellProgress
from tickerplant.audit.sources import Figures, Source

if TYPE_CHECKING:
    from tickerplant.audit.audited_store import AuditedStore


def audit_session(
    log_folder: Path,
    session: int | None = None,
    *,
    capture_folder: Path | None = None,
    recordings: Sequence[Path] = (),
    store: "AuditedStore | None" = None,
    tell_progress: TellProgress | None = None,
) -> AuditReport:
    """Audit one session of a log, None: the newest, and with it the capture of its inputs, recordings and stored rows.

    Reads files only, and may run beside the plant. Raises `ConfigurationError` if there is no such session,
    `RecordingError`, `OSError`.
    """
    log = SessionLog(log_folder, session)
    findings = Findings(log.session)
    sources: list[Source] = [RecordingAudit(folder, log.session, findings) for folder in recordings]
    audit = log.begin_audit(findings, sources)
    datagrams = log.datagrams(audit, findings, tell_progress)
    figures: dict[str, Figures] = {}
    if capture_folder is None:
        for datagram in datagrams:
            audit.take(datagram)
        audit.finish()
    else:
        capture = CaptureRun(capture_folder, log.session, findings, audit, datagrams)
        capture.run()
        figures["exchange"] = capture.figures()
    log.judge_end(audit, findings)
    figures |= {source.where: source.figures() for source in sources}
    if store is not None:
        from tickerplant.audit.store_audit import StoreAudit  # noqa: PLC0415  # needs the extra `history`

        figures["store"] = StoreAudit(findings, log_folder, log.names[0], store).run()
    return report_of(findings, {"log": _figures_of(log, audit)} | figures)


def _figures_of(log: SessionLog, audit: LogAudit) -> Figures:
    return {
        "segments": len(log.names),
        "bytes": log.size_bytes,
        "datagrams": audit.datagrams,
        "messages": audit.messages,
        "heartbeats": audit.streams.heartbeats,
        "level changes": audit.books.updates,
        "checksums": audit.books.checksums,
        "quotes": audit.books.quotes,
        "bytes torn off or being written": log.torn_bytes,
        "ended in order": audit.streams.ended,
        "end of the session before compared": audit.final_seqs_compared,
    }
