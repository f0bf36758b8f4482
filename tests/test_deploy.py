"""What `deploy/` holds is accepted by the programs that read it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from trine.cli import trine
from trine.embedded import server_program
from trine.settings import Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
INSTALLED = "/opt/trine/bin/"


def said(unit: Path, name: str) -> list[str]:
    """Return the values of a setting of a unit."""
    return re.findall(rf"^{name}=(.+)$", unit.read_text(), re.MULTILINE)


def check_configuration(file: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [server_program(), "-t", "-c", file],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_nats_accepts_its_configuration(tmp_path: Path) -> None:
    checked = check_configuration(DEPLOY / "nats.conf", TRINE_STORE=str(tmp_path))
    assert checked.returncode == 0, checked.stderr


def test_nats_accepts_what_the_comments_of_its_configuration_offer(tmp_path: Path) -> None:
    text = (DEPLOY / "nats.conf").read_text()
    blocks = re.findall(r"^# (authorization \{.*\})$", text, re.MULTILINE)
    assert blocks
    (tmp_path / "nats.conf").write_text("\n".join([text, *blocks]))
    variables = {"TRINE_STORE": str(tmp_path), "NATS_PASSWORD": "secret"}
    checked = check_configuration(tmp_path / "nats.conf", **variables)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_command_of_a_unit_is_one_that_there_is(unit: Path) -> None:
    (line,) = said(unit, "ExecStart")
    program, *arguments = shlex.split(line.replace("%i", "cpu"))
    assert program.startswith(INSTALLED)
    if program == f"{INSTALLED}nats-server":
        assert arguments == ["-c", "/etc/trine/nats.conf"]
        return
    assert program == f"{INSTALLED}trine"
    ran = CliRunner().invoke(trine, [*arguments, "--help"], prog_name="trine")
    assert ran.exit_code == 0, ran.output


def test_a_command_with_an_unknown_option_would_be_noticed() -> None:
    assert CliRunner().invoke(trine, ["up", "--unknown", "--help"]).exit_code == 2


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_settings_that_a_unit_makes_are_known(
    unit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [pair for line in said(unit, "Environment") for pair in line.split()]
    for name, _, value in (pair.partition("=") for pair in pairs):
        if name.startswith("TRINE_"):
            monkeypatch.setenv(name, value)
    Settings.load()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        here = f"{Path(sys.executable).parent}/"
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, here))
    checked = subprocess.run(
        ["systemd-analyze", "verify", *sorted(tmp_path.glob("*.service"))],
        capture_output=True,
        text=True,
    )
    ours = [line for line in checked.stderr.splitlines() if "trine" in line]
    assert (checked.returncode, ours) == (0, []), checked.stderr


def test_the_readme_tells_of_every_file() -> None:
    text = (DEPLOY / "README.md").read_text()
    names = [file.name for file in DEPLOY.iterdir() if file.name != "README.md"]
    assert [name for name in names if f"`{name}`" not in text] == []
