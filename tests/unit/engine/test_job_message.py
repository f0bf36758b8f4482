"""What a job is on the wire."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trine.errors import UsageError
from trine.jobs.message import Order, Ref, job_token, partition, prepare
from trine.wire import Names

NAMES = Names("ns")


@given(st.sets(st.text(max_size=200), max_size=20))
def test_different_ids_are_different_tokens(ids):
    tokens = {job_token(id) for id in ids}
    assert len(tokens) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_=-]{1,128}", token) for token in tokens)


@given(st.text())
def test_a_token_is_its_own_token(id):
    assert job_token(job_token(id)) == job_token(id)


@given(st.text())
def test_a_key_always_has_the_same_partition_of_eight(key):
    assert partition(key) == partition(key)
    assert re.fullmatch(r"p[0-7]", partition(key))


@given(st.text(min_size=1))
def test_a_reference_names_its_job(id):
    ref = Ref("works", job_token(id))
    assert Ref.parse(str(ref)) == ref
    assert Ref.of(NAMES.job("works", "any", "high", ref.id)) == ref
    assert Ref.of(NAMES.delayed("works", "any", "high", ref.id)) == ref


@pytest.mark.parametrize("text", ["", "works", "works/", "/x", "a.b/x"])
def test_what_names_no_job_is_refused(text):
    with pytest.raises(UsageError):
        Ref.parse(text)


def test_a_delayed_job_waits_beside_its_copy_and_under_one_guard():
    job = prepare(NAMES, "works", b"{}", Order(id="x", delay=5, priority="low"))
    waits = job.recorded(NAMES, once=True)
    assert waits.subject == "ns.tx.job.at.works.any.low.x"
    headers = waits.headers or {}
    assert headers["Nats-Schedule-Target"] == "ns.tx.job.now.works.any.low.x"
    assert headers["Nats-Expected-Last-Subject-Sequence-Subject"] == "ns.tx.job.*.works.*.*.x"
    assert NAMES.relayed(job.message.subject) == headers["Nats-Schedule-Target"]
