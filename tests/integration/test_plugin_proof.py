"""The proof for plugins: a package of its own, installed by pip, found, served, and conforming."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trine import trigger

PLUGIN = Path(__file__).parents[1] / "plugins" / "trine-subject"
PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
APP = """
import sys

from trine import App
from trine.trigger import load
from trine_subject import SubjectMessage

app = App("home")
Subject = load("subject")  # by its entry point

@app.on(Subject(subject="sensors.*.heat"))
@app.function("heat.note")
async def note(message: SubjectMessage) -> None:
    print('{"noted": "%s"}' % message.text, flush=True)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the plugin with pip into a folder of its own and return that folder."""
    scratch = tmp_path_factory.mktemp("plugin")
    source = scratch / "source"
    shutil.copytree(PLUGIN, source)
    target = scratch / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    ended = subprocess.run(
        [*pip, "--no-index", "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return target


def environment(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed)}


def test_the_engine_finds_an_installed_plugin_by_its_entry_point(installed):
    assert "subject" not in trigger.kinds()  # not before it is installed
    code = "from trine import trigger; print(trigger.load('subject').kind(), *trigger.kinds())"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(installed),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    kind, *kinds = ended.stdout.split()
    assert kind == "subject"
    assert {"subject", "cron", "http"} <= set(kinds)


def test_the_plugins_own_tests_pass_where_it_is_installed(installed, tmp_path):
    shutil.copy(PLUGIN / "test_trine_subject.py", tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=environment(installed),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout
    assert "7 passed" in ended.stdout


@pytest.mark.anyio
async def test_a_served_function_runs_when_the_plugin_fires(trine, installed, nats, space):
    from trine import Client

    file = trine.directory / "home.py"
    file.write_text(APP)
    environ = {"PYTHONPATH": str(installed)}
    async with trine.start("serve", f"{file}:app", "--json", **environ) as program:
        assert "worker" in await program.line()
        async with Client.connect(nats, namespace=space) as client:
            client.bus.connection.send("sensors.kitchen.heat", b"21.5")
            assert (await program.line()) == {"noted": "21.5"}
            code, out, _ = await trine.run("ls", "triggers", "--json", **environ)
            assert code == 0
            assert "subject" in json.dumps(json.loads(out))


def test_the_trigger_of_the_plugin_is_under_40_lines():
    lines = (PLUGIN / "trine_subject.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 40


def test_the_page_about_plugins_shows_this_plugin():
    page = PAGE.read_text()
    for file in PLUGIN.iterdir():
        assert file.read_text().strip() in page, file.name
