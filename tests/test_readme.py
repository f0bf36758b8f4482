"""The README's commands and code, run as they are printed, in an empty directory."""

import re
import shutil
from pathlib import Path

import pytest
from documents import blocks, commands, free_port, run, start, stop
from documents import environment as newcomer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = blocks(README)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return newcomer(tmp_path)


def up(arguments: list[str], place: Path, environment: dict[str, str]):
    return start(arguments, place, environment, "Ready")


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    first = commands(BLOCKS[0][1])
    assert [command for command, _ in first] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:.* ## ", makefile, re.MULTILINE)
    assert re.search(r"^test:.* ## ", makefile, re.MULTILINE)


def test_the_example_is_short_and_does_what_is_printed(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    source = BLOCKS[1][1]
    code = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 15
    (tmp_path / "hello.py").write_text(source)
    port = free_port()
    install, start, *calls = commands(BLOCKS[2][1])
    assert install[0] == "pip install ."
    assert start[0].startswith("trine up ")
    program = up([*start[0].split()[1:], "--port", str(port)], tmp_path, environment)
    try:
        for command, printed in calls:
            said = run(command.replace("3111", str(port)), tmp_path, environment)
            assert said.splitlines()[-1] == printed
    finally:
        stop(program)


def test_the_commands_of_the_loop_run(tmp_path: Path, environment: dict[str, str]) -> None:
    port = free_port()
    start, loop, status, resume = (command for command, _ in commands(BLOCKS[4][1]))
    (submit,) = (command for command, _ in commands(BLOCKS[5][1]))
    program = up([*start.split()[1:], "--port", str(port)], tmp_path, environment)
    try:
        said = run(f"{loop} --tag mar11", tmp_path, environment)
        assert '"status":"running"' in said
        assert "mar11" in run(status, tmp_path, environment)
        assert "experiment_id" in run(submit.replace("3111", str(port)), tmp_path, environment)
        run("trine loop pause", tmp_path, environment)
        assert resume == "trine loop resume"
        help_text = run(f"{resume} --help", tmp_path, environment)
        assert "interrupted" in help_text
    finally:
        stop(program)


def test_every_file_that_the_readme_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for root, names in re.findall(r"^(\w+/\w+)/ +([^\n]*(?:\n  .*)*)", README, re.MULTILINE):
        for line in names.splitlines()[1:]:
            for name in re.split(r"\s{2,}", line.strip())[0].rstrip("/").split():
                place = ROOT / root
                assert (place / name).exists() or (place / f"{name}.py").exists(), f"{root}/{name}"


def test_make_help_lists_every_target(environment: dict[str, str]) -> None:
    if shutil.which("make") is None:
        pytest.fail("make is missing")
    listed = run("make help", ROOT, environment)
    for target in ("demo", "test", "long", "bench", "check"):
        assert re.search(rf"^{target}\s", listed, re.MULTILINE)
