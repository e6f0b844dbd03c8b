"""Documents say what is true of the code they stand beside."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

from cascadevl.cli.main import VERBS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cascadevl/embedded/*/*.md")])


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for _, language, code in found if language in languages]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_parse(page):
    for code in blocks(page, "python"):
        ast.parse(code, filename=str(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_tests_and_benchmarks_exist(page):
    for path in re.findall(r"\b((?:tests|benchmarks|examples)/[\w/]+\.py)\b", page.read_text()):
        assert (ROOT / path).is_file(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_verbs_that_exist(page):
    for code in blocks(page, "bash", "sh", "console"):
        for verb in re.findall(r"(?:\bcascadevl|\./run) ([a-z]+)", code):
            assert verb in VERBS, f"{page.name}: cascadevl {verb}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


# What was, stays written in the other two.
TODAY = [page for page in PAGES if page.name not in ("CHANGELOG.md", "log.md")]


@pytest.mark.parametrize("page", TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_our_rooms_exist(page):
    for path in re.findall(r"`([\w/*]+\.(?:py|c))`", page.read_text()):
        if (ROOT / "cascadevl" / path.split("/")[0]).is_dir():
            assert list((ROOT / "cascadevl").glob(path)), f"{page.name} names {path}"


def test_every_page_is_reachable_from_the_readme():
    read, found = set(), [ROOT / "README.md"]
    while found:
        page = found.pop().resolve()
        if page.is_dir():
            found += page.glob("*.md")
        elif page.suffix == ".md" and page not in read:
            read.add(page)
            found += [page.parent / target for target in re.findall(r"\]\(([^)#:\s]+)", page.read_text())]
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages <= read, f"no link leads to {sorted(page.name for page in pages - read)}"
