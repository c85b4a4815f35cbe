"""``jsonqueue verify`` and ``jsonqueue repair``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jsonqueue.cli.app import command
from jsonqueue.cli.console import Console, Settings
from jsonqueue.cli.reading import require_queue
from jsonqueue.cli.text import plural, printable

if TYPE_CHECKING:
    from jsonqueue.storage.repair import Finding, Report

__all__ = ["print_report", "repair", "verify"]


@command("verify", short_help="Check every byte of the queue's files; changes nothing.")
def verify(settings: Settings) -> int:
    """Check every byte of the queue's files: checksums, order, and whether the history makes sense. Changes nothing.

    Exit status 0 if all is well or merely untidy, 1 if something is damaged.
    """
    from jsonqueue.storage.repair import verify as look

    require_queue(settings.queue_dir)
    return print_report(settings.console, look(settings.queue_dir), repaired=False)


@command("repair", short_help="Mend damaged files; loses nothing unless told to.")
@click.option("--accept-loss", is_flag=True, help="Where something cannot be saved, keep what is whole; all that is replaced stays aside.")
@click.option("--accept-edit", is_flag=True, help="Take a queue.json that was edited by hand as it stands now.")
def repair(settings: Settings, accept_loss: bool, accept_edit: bool) -> int:
    """Mend damaged files. No broker may be running.

    Without options only what can be mended without any loss is mended. Exit status 0 if all is well now, 1 if something is left.
    """
    from jsonqueue.storage.repair import repair as mend

    require_queue(settings.queue_dir)
    return print_report(settings.console, mend(settings.queue_dir, accept_loss=accept_loss, accept_edit=accept_edit), repaired=True)


def print_report(console: Console, report: Report, *, repaired: bool) -> int:
    """The report; 1 if something in it is not harmless (and was not mended)."""
    damaged = [finding for finding in report.findings if not finding.harmless]
    if console.as_json:
        console.json({
            "ok": not damaged, "tasks": report.tasks, "findings": [finding._asdict() for finding in report.findings],
            "done": report.done, "lost": report.lost,
        })  # fmt: skip
        return 1 if damaged else 0
    for finding in report.findings:
        _print_finding(console, finding)
    for sentence in report.done:
        console.line(f"done   {printable(sentence)}")
    for sentence in report.lost:
        console.line(f"lost   {printable(sentence)}")
    console.line(_verdict(report, damaged, repaired=repaired))
    return 1 if damaged else 0


def _print_finding(console: Console, finding: Finding) -> None:
    batch = f", batch {finding.batch}" if finding.batch is not None else ""
    mark = "note " if finding.harmless else "NEWER " if finding.kind == "newer" else "DAMAGE"
    console.line(f"{mark}  {printable(finding.file)}, byte {finding.offset}{batch}: {printable(finding.what)}")
    if finding.options:
        console.line(f"        → {printable(finding.options)}")


def _verdict(report: Report, damaged: list[Finding], *, repaired: bool) -> str:
    held = f", {plural(report.tasks, 'task')}" if report.tasks is not None else ""
    if damaged and all(finding.kind == "newer" for finding in damaged):
        return f"Written by a newer jsonqueue, and not checked{held}."
    if damaged:
        return f"{plural(len(damaged), 'place')} damaged{held}."
    if report.done or report.lost:
        return f"Mended{held}; {plural(len(report.lost), 'thing')} lost."
    notes = f" ({plural(len(report.findings), 'harmless note')})" if report.findings else ""
    return f"{'Nothing to mend' if repaired else 'All is well'}{held}{notes}."
