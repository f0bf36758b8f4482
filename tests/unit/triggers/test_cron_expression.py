"""Cron expressions, as the server reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trine_triggers import Cron
from trine_triggers.cron import server_expression

field = st.sampled_from(["*", "0", "5", "*/10", "1,2,3", "1-5", "?", "MON-FRI", "JAN"])


@given(st.lists(field, min_size=6, max_size=6))
def test_six_fields_are_left_as_they_are(fields):
    text = " ".join(fields)
    assert server_expression(text) == text
    assert server_expression(f"  {'   '.join(fields)} ") == text


@given(st.lists(field, min_size=5, max_size=5))
def test_five_fields_run_at_second_zero(fields):
    assert server_expression(" ".join(fields)) == "0 " + " ".join(fields)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("@daily", "0 0 0 * * *"), ("@hourly", "0 0 * * * *"), ("@weekly", "0 0 0 * * 0")],
)
def test_names_are_spelled_out(name, expected):
    assert server_expression(name) == expected


@pytest.mark.parametrize("text", ["@every 1s", "@every 1m30s", "@every 1.5s", "@every 24h"])
def test_a_period_is_left_as_it_is(text):
    assert server_expression(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "* * * *", "* * * * * * *", "* * * * $", "@reboot", "CRON_TZ=UTC * * * * *"),
        *("@every", "@every 5", "@every x", "@every 500ms", "@every 0s"),
    ],
)
def test_what_is_no_expression_is_refused_where_it_is_written(text):
    with pytest.raises(ValidationError):
        Cron(text)


def test_an_unknown_zone_is_refused_where_it_is_written():
    with pytest.raises(ValidationError, match="zone"):
        Cron("@daily", zone="Mars/Olympus")
    assert Cron("@daily", zone="Europe/Amsterdam").zone == "Europe/Amsterdam"
