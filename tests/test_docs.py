"""Every page of the documentation, done as a newcomer would: its files, then its commands."""

import re
from pathlib import Path

import pytest
from documents import beside, blocks, commands, environment, free_port, run, start, stop

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if "evidence" not in page.parts and "```console" in page.read_text()
)
READY = {"up": "Ready", "serve": "serving"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT / "docs").with_suffix(""))


@pytest.mark.timeout(150)
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_newcomer_who_follows_the_page_sees_what_it_shows(page: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    port = free_port()
    programs = []
    try:
        for language, text in blocks(page.read_text()):
            named = re.match(r"(?:#|//) ([\w/.-]+\.\w+)\n", text)
            if language != "console" and named:
                file = tmp_path / named[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            if language != "console":
                continue
            for command, printed in commands(text):
                words = command.replace("3111", str(port)).split()
                if words[0] == "trine" and words[1] in READY:
                    where = ["--port", str(port)] if words[1] == "up" else []
                    programs.append(start([*words[1:], *where], tmp_path, env, READY[words[1]]))
                    continue
                if words[-1] == "&":
                    programs.append(beside(command, tmp_path, env))
                    continue
                said = run(command.replace("3111", str(port)), tmp_path, env)
                expected = [line.rstrip() for line in printed.splitlines()]
                assert [x.rstrip() for x in said.splitlines()][-len(expected) :] == expected or (
                    not expected
                ), f"{command} said {said!r}"
    finally:
        for program in reversed(programs):
            stop(program)


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
