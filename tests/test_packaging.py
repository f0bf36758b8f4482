"""What a user installs: the files of the wheel, what it asks for, and what an import loads."""

import configparser
import os
import subprocess
import sys
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOTS = {
    "trine": REPOSITORY / "engine",
    "trine_triggers": REPOSITORY / "triggers",
    "trine_functions": REPOSITORY / "functions",
    "trine_workers": REPOSITORY / "workers",
}
EXTRA = {"numpy", "nvidia-ml-py", "torch"}  # what only a host that trains needs
TELEMETRY = {  # what only those need who have a collector
    "opentelemetry-api",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-sdk",
}
LONGEST = 300  # lines of a module, unless one of its first five lines says why:
EXCUSE = "# Longer than 300 lines:"
MODULES = sorted(
    path
    for package, root in ROOTS.items()
    for path in (root / package).rglob("*.py")
    if "__pycache__" not in path.parts
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, REPOSITORY],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (one,) = place.glob("*.whl")
    return one


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (one for one in archive.namelist() if one.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


@pytest.fixture(scope="module")
def facts(wheel: Path) -> Message:
    return message_from_string(metadata(wheel, "METADATA"))


def requirements(facts: Message) -> dict[str, tuple[str, str]]:
    """Return version and marker of each requirement by its name."""
    found = {}
    for line in facts.get_all("Requires-Dist", []):
        wanted, _, marker = line.partition(";")
        name = wanted.strip()
        for sign in "<>=!~ [":
            name = name.partition(sign)[0]
        found[name] = (wanted.strip().removeprefix(name), marker.strip())
    return found


def test_every_module_of_the_four_packages_is_in_the_wheel_and_nothing_else(
    names: set[str],
) -> None:
    expected = {
        str(path.relative_to(root))
        for package, root in ROOTS.items()
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {f"{package}/py.typed" for package in ROOTS} <= names
    target = "trine_workers/targets/nanolm"
    assert {f"{target}/{file}" for file in ("prepare.py", "train.py", "program.md")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_everything_that_is_found_by_name_is_declared(wheel: Path) -> None:
    declared = configparser.ConfigParser()
    declared.read_string(metadata(wheel, "entry_points.txt"))
    assert declared["console_scripts"]["trine"] == "trine.cli:main"
    assert set(declared["trine.triggers"]) >= {"cron", "event", "http", "key", "queue"}
    assert declared["trine.apps"]["research"] == "trine_functions.app:app"
    assert set(declared["trine.commands"]) >= {"loop", "worker"}
    assert declared["trine.targets"]["nanolm"] == "trine_workers.targets.nanolm"


def test_what_trains_is_asked_for_under_the_extra_alone(facts: Message) -> None:
    wanted = requirements(facts)
    under_gpu = {name for name, (_, marker) in wanted.items() if "extra == 'gpu'" in marker}
    assert under_gpu == EXTRA
    extra = {name for name, (_, marker) in wanted.items() if "extra" in marker}
    assert extra == EXTRA | TELEMETRY
    assert set(wanted["torch"][0].split(",")) == {">=2.6", "<2.14"}
    assert facts["Requires-Python"] == ">=3.11"


LOADED = """
import sys
import trine_functions.app, trine_functions.cli, trine_workers.cli, trine_triggers.cron
import trine.cli
print(trine.cli.__file__)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_installed_packages_load_nothing_heavy(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    place, modules = ran.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path), "the wheel was imported, not the checkout"
    assert not {"torch", "matplotlib", "numpy", "pynvml"} & set(modules.split())


@pytest.mark.parametrize("module", MODULES, ids=lambda path: "/".join(path.parts[-3:]))
def test_a_module_is_short_or_says_why_it_is_not(module: Path) -> None:
    lines = module.read_text().splitlines()
    excused = any(line.startswith(EXCUSE) for line in lines[:5])
    assert len(lines) <= LONGEST or excused, f"{len(lines)} lines: split it, or say {EXCUSE}"
