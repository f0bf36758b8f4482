"""Finding an app by its name."""

import pytest

from trine.app import load
from trine.errors import UsageError

SOURCE = "from trine import App\napp = App('one')\nsecond = App('two')\nother = 3\n"


def test_an_app_is_found_in_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    assert load(str(file)).name == "one"
    assert load(f"{file}:second").name == "two"


def test_an_app_is_found_in_a_module_of_this_directory(tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    assert load("mine_here").name == "one"
    assert load("mine_here:second").name == "two"


def test_what_is_no_app_is_a_usage_error(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    for target, said in [
        (f"{file}:other", "not an App"),
        (f"{file}:missing", "not an App"),
        (f"{tmp_path}/none.py", "no file"),
        ("no_such_module:app", "no module"),
        ("trine.no_such_module", "no module"),
    ]:
        with pytest.raises(UsageError, match=said):
            load(target)
