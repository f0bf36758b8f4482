"""Places in a trace, trees of spans, and how they are shown."""

from hypothesis import given
from hypothesis import strategies as st

from trine.cli.trace import lines
from trine.invocation import Invocation, caused, current, new_traceparent
from trine.observability.traces import Place, Span, tree, walk

TRACE = "a" * 32


def span(id: str, parent: str | None, **facts) -> Span:
    known = {
        "invocation": f"i-{id}", "function": f"f.{id}", "worker": "w", "trigger": None,
        "attempt": 1, "started_at": 0.0, "milliseconds": 1.0, "outcome": "ok",
    }  # fmt: skip
    return Span(trace=TRACE, span=id, parent=parent, **{**known, **facts})


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"))
def test_any_text_is_a_place_or_none(text):
    place = Place.parse(text)
    if place is not None:
        assert text[3:35] == place.trace
        again = Place.parse(place.traceparent)
        assert again == place


def test_a_new_trace_is_a_place_and_its_child_is_in_the_same_trace():
    place = Place.parse(new_traceparent())
    assert place is not None
    assert place.sampled
    child = place.child()
    assert (child.trace, child.sampled) == (place.trace, True)
    assert child.span != place.span


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 15)), max_size=30))
def test_every_span_is_in_the_tree_once_whatever_its_cause_is_said_to_be(edges):
    spans = list({str(id): span(str(id), str(above)) for id, above in edges}.values())
    given = [branch.span.span for branch, _ in walk(tree(spans))]
    assert sorted(given) == sorted(one.span for one in spans)


def test_a_chain_of_thousands_is_a_tree():
    spans = [span(str(number), str(number - 1)) for number in range(3000)]
    assert sum(1 for _ in walk(tree(spans))) == 3000


def test_a_trace_is_shown_as_a_tree_with_times_causes_and_errors():
    spans = [
        span("root", "of-a-gateway", started_at=10.0, milliseconds=20.0),
        span("call", "root", started_at=10.001),
        span("deep", "call", started_at=10.002),
        span(
            "job", "root", started_at=10.5, trigger="job", attempt=2,
            outcome="internal", error="ValueError:\n no",
        ),
    ]  # fmt: skip
    assert lines(spans) == [
        f"trace {TRACE}: 4 runs in 501.0 ms, 1 failed",
        "f.root          +0.0 ms  20.0 ms  call            w",
        "├─ f.call       +1.0 ms   1.0 ms  call            w",
        "│  └─ f.deep    +2.0 ms   1.0 ms  call            w",
        "└─ f.job      +500.0 ms   1.0 ms  job, attempt 2  w  internal: ValueError: no",
    ]


def test_what_a_handler_stores_goes_on_with_its_trace_and_its_state():
    traceparent = f"00-{TRACE}-{'b' * 16}-01"
    received = {"tracestate": "rojo=1"}
    token = current.set(Invocation("i-1", "f.one", traceparent=traceparent, received=received))
    try:
        assert caused() == {
            "Trine-Invocation": "i-1",
            "traceparent": traceparent,
            "tracestate": "rojo=1",
        }
    finally:
        current.reset(token)
    assert set(caused()) == {"traceparent"}
