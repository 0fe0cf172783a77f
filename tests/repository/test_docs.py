"""The documentation says what is there: links, decisions, commands and code blocks."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main

from esper.cli._app import app
from tests.repository.tree import ROOT, documents, text_of

LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
DECISIONS = Path("docs/adr")


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of one language on a page."""
    return [match["code"] for match in BLOCK.finditer(text_of(page)) if match["language"] == language]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Markdown viewers make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", documents(), ids=str)
def test_links_resolve(page: Path) -> None:
    """Every relative link leads to a file of the repository, and to a heading where it names one: follow each."""
    broken = []
    for match in LINK.finditer(text_of(page)):
        if re.match(r"[a-z]+:", match["target"]):
            continue
        name, _, anchor = match["target"].partition("#")
        target = (ROOT / page.parent / name).resolve() if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.relative_to(ROOT))):
            broken.append(match["target"])
    assert broken == []


@pytest.mark.parametrize("page", documents(), ids=str)
def test_code_blocks_are_closed(page: Path) -> None:
    """An open block swallows the rest of a page: count the fences."""
    assert text_of(page).count("\n```") % 2 == 0


def test_every_decision_is_in_the_index() -> None:
    """The index lists exactly the decision pages, under their own titles: compare both."""
    pages = {path.name: path for path in (ROOT / DECISIONS).glob("[0-9]*.md")}
    rows = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \| (.+) \|$", text_of(DECISIONS / "README.md"), re.MULTILINE)
    assert {name for _, name, _ in rows} == set(pages)
    for number, name, title in rows:
        assert text_of(DECISIONS / name).startswith(f"# {number}: {title}\n")


def test_decisions_are_numbered_without_gaps() -> None:
    """Numbers are names that other files use: they run from 1 without a gap or a repetition."""
    numbers = sorted(int(path.name[:4]) for path in (ROOT / DECISIONS).glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("page", sorted((ROOT / DECISIONS).glob("[0-9]*.md")), ids=lambda page: page.stem)
def test_decision_says_what_it_must(page: Path) -> None:
    """A decision has a context, a choice, a reason and what would change it, each with words: look for all four."""
    text = page.read_text(encoding="utf-8")
    for heading in ("Context.", "Choice.", "Reason.", "What would change it."):
        found = re.search(rf"^\*\*{re.escape(heading)}\*\* (.+)", text, re.MULTILINE)
        assert found, f"{page.name} lacks **{heading}**"
        assert len(found[1]) > 10


def test_architecture_is_a_map() -> None:
    """A map fits into a reader's head: the page stays under 300 lines."""
    assert len(text_of("docs/ARCHITECTURE.md").splitlines()) < 300


def test_architecture_names_every_package() -> None:
    """No room is missing from the map: every package of esper stands in it by its path."""
    packages = [path.parent.relative_to(ROOT) for path in (ROOT / "esper").glob("*/__init__.py")]
    text = text_of("docs/ARCHITECTURE.md")
    assert [str(package) for package in packages if f"`{package}/`" not in text] == []


def esper_commands(page: Path) -> list[list[str]]:
    """Return the words of each `esper ...` command in a page's shell blocks."""
    found = []
    for code in blocks(page, "sh"):
        for line in code.splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words and words[0] in ("esper", ".venv/bin/esper"):
                    found.append(words[1:])
    return found


def check_command(words: list[str]) -> None:
    """Parse a command line with the real command tree, without running it; click raises for what does not exist."""
    command = typer.main.get_command(app)
    context = click.Context(command, info_name="esper")
    while isinstance(command, click.Group):
        assert words, f"{context.command_path} needs a subcommand"
        found = command.get_command(context, words[0])
        assert found is not None, f"{context.command_path} has no command {words[0]!r}"
        context, command, words = click.Context(found, info_name=words[0], parent=context), found, words[1:]
    command.parse_args(context, list(words))


@pytest.mark.parametrize("page", [page for page in documents() if esper_commands(page)], ids=str)
def test_documented_commands_exist(page: Path) -> None:
    """No page shows a command that cannot be typed: parse each with the real command tree."""
    for words in esper_commands(page):
        check_command(words)


@pytest.mark.parametrize("page", documents(), ids=str)
def test_python_blocks_compile_and_import(page: Path) -> None:
    """Python in a page is Python: each block compiles and the esper names that it imports exist."""
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "esper":
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
