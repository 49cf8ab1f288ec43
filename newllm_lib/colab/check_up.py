"""The check-up of `newllm doctor` as one table."""

from ..doctor import Finding, doctor
from .page.notices import say, show
from .page.pieces import code_html, escape, mark_html, table_html


def show_check_up(adapters: bool = False, preferences: bool = False) -> None:
    """Show every finding, with what only stage 5 (`adapters`) or stage 6 (`preferences`) needs, and sum them up."""
    findings = doctor(".", adapters, preferences)
    show(check_up_html(findings))
    say(*verdict(findings))


def check_up_html(findings: list[Finding]) -> str:
    rows = []
    for f in findings:
        advice = escape(f.advice) + code_html(f.code)
        rows.append([mark_html(f.status), f"<b>{escape(f.subject)}</b>", escape(f.value), advice])
    return table_html(rows)


def verdict(findings: list[Finding]) -> tuple[str, str]:
    failed = [f.subject for f in findings if f.status == "fail"]
    if failed:
        return f"Something is missing ({', '.join(failed)}): the table says what to do.", "fail"
    notes = sum(f.status == "note" for f in findings)
    remarks = f"; {notes} remark{'s' if notes > 1 else ''} above" if notes else ""
    return f"Everything will run{remarks}.", "ok"
