"""The note by which programs find a running system."""

import os

import pytest

from trine import discovery
from trine.errors import UnavailableError


def test_a_note_of_a_living_process_is_found(tmp_path):
    discovery.write_note(tmp_path, {"pid": os.getpid(), "nats": "nats://here"})
    assert discovery.server_url(tmp_path) == "nats://here"
    assert [file.name for file in tmp_path.iterdir()] == [discovery.NOTE]


def test_a_note_of_somebody_elses_process_is_found(tmp_path):
    discovery.write_note(tmp_path, {"pid": 1, "nats": "nats://init"})
    assert discovery.server_url(tmp_path) == "nats://init"


@pytest.mark.parametrize("text", ["", "{}", '{"pid": "x"}', '{"pid": 4194303, "nats": "x"}'])
def test_a_stale_or_broken_note_is_none(tmp_path, text):
    (tmp_path / discovery.NOTE).write_text(text)
    with pytest.raises(UnavailableError, match="trine up"):
        discovery.server_url(tmp_path)


def test_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("TRINE_NATS", "nats://elsewhere")
    discovery.write_note(tmp_path, {"pid": os.getpid(), "nats": "nats://here"})
    assert discovery.server_url(tmp_path) == "nats://elsewhere"
