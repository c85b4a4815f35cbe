"""What the pages tell a reader to type works. How a snippet is marked: see snippets.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snippets import SnippetFailed, run_page, snippets_of

TOP = Path(__file__).resolve().parent.parent
PAGES = sorted({*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"), *TOP.glob("examples/**/*.md"), *TOP.glob("queue_data/*.md")})


@pytest.mark.processes
@pytest.mark.timeout(180)  # a page of many snippets, each with its own limit
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_the_snippets_of_a_page_work(page: Path, tmp_path: Path) -> None:
    """They run, one after the other, in an empty folder; those that only a person can run are at least written correctly."""
    ran = run_page(page, tmp_path)
    if ran.left_out:
        pytest.skip("all but: " + ", ".join(ran.left_out))


def test_the_command_for_all_checks_is_in_the_readme() -> None:
    """A newcomer finds both commands."""
    text = (TOP / "README.md").read_text()
    assert "scripts/run" in text
    assert "scripts/test" in text


# ── the runner itself can fail ───────────────────────────────────────────────────────────────────────────────────────


def page_with(tmp_path: Path, *snippets: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text("A page.\n\n" + "\n\n".join(f"```{snippet}\n```" for snippet in snippets) + "\n")
    return page


@pytest.mark.parametrize(
    "snippet",
    [
        "python\nassert 1 + 1 == 3",
        "python skip\ndef broken(",
        "sh run\nfalse",
        "sh run\nfalse | cat",
        "sh run\ntest -e nowhere; true",
        "sh\nif true",
        "text output\nnever printed",
    ],
)
def test_a_wrong_snippet_is_found(snippet: str, tmp_path: Path) -> None:
    """The failure names page and line."""
    with pytest.raises(SnippetFailed, match=r"page\.md:3"):
        run_page(page_with(tmp_path, snippet), tmp_path)


def test_snippets_build_on_one_another(tmp_path: Path) -> None:
    """A file of one is there for the next, and what is printed is compared."""
    page = page_with(
        tmp_path,
        "python file=greeting.py\nword = 'hello'",
        "python\nimport greeting\nprint(greeting.word)",
        "text output\nhello",
        "sh\nnot_run",
    )
    assert run_page(page, tmp_path).snippets == 2
    assert [snippet.line for snippet in snippets_of(page)] == [3, 7, 12, 16]


def test_what_runs_in_the_background_is_ended(tmp_path: Path) -> None:
    """At the end of the page nothing is left running, and one that failed meanwhile fails the page."""
    waits = "sh run\nuntil [ -s pid ]; do sleep 0.02; done; kill -0 $(cat pid)"
    assert run_page(page_with(tmp_path, "sh background\nsleep 100 & echo $! > pid; wait", waits), tmp_path).snippets == 2
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    with pytest.raises(SnippetFailed, match="exit status 3"):
        run_page(
            page_with(tmp_path, "sh background\ntouch began; exit 3", "sh run\nuntil [ -e began ]; do sleep 0.02; done; sleep 0.1"),
            tmp_path,
        )


def test_a_snippet_whose_program_is_missing_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without jq runs the rest of the page, and says what it did not run."""
    monkeypatch.setenv("PATH", "/nowhere")
    page = page_with(tmp_path, "sh run\ncat queue.json | jq .", "python\nprint('the rest')")
    ran = run_page(page, tmp_path)
    assert ran.snippets == 1
    assert ran.left_out == ["line 3 needs jq"]
