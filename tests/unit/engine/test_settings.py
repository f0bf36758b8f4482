"""Settings from the environment and from flags."""

from pathlib import Path

import pytest

from trine.errors import UsageError
from trine.settings import Settings


def test_defaults_need_nothing():
    assert Settings.load() == Settings()


def test_a_flag_wins_over_the_environment_and_none_is_no_flag(monkeypatch):
    monkeypatch.setenv("TRINE_NAMESPACE", "env")
    monkeypatch.setenv("TRINE_PORT", "4000")
    monkeypatch.setenv("TRINE_STORE", "/tmp/x")
    settings = Settings.load(namespace="flag", port=None)
    assert (settings.namespace, settings.port, settings.store) == ("flag", 4000, Path("/tmp/x"))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TRINE_NAMESPCE", "x", "namespce"),
        ("TRINE_PORT", "http", "port"),
        ("TRINE_DURABILITY", "never", "durability"),
        ("TRINE_LOG_LEVEL", "loud", "log_level"),
    ],
)
def test_a_variable_that_means_nothing_is_an_error_that_names_it(
    monkeypatch, variable, value, said
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=said) as error:
        Settings.load()
    assert "TRINE_NAMESPACE" in error.value.message


def test_variables_of_other_programs_are_left_alone(monkeypatch):
    monkeypatch.setenv("TRINE_COMPLETE", "bash_source")
    monkeypatch.setenv("TRINE_EXPERIMENT", "x")
    Settings.load()
