"""Which route a path leads to, how texts become values, and what the settings refuse."""

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from trine import App
from trine.errors import BadRequestError, InvalidInputError, UsageError
from trine_triggers import Http, Webhook
from trine_triggers.gateway import decode
from trine_triggers.gateway.decode import Fields
from trine_triggers.gateway.options import GatewayOptions
from trine_triggers.gateway.replies import _takes_gzip
from trine_triggers.gateway.routing import Table


def table(*routes: tuple[str, str]) -> Table:
    made = Table()
    for method, path in routes:
        assert made.add(method, path, path) is None
    return made


def test_a_literal_segment_wins_over_a_parameter_and_a_narrow_conversion_over_a_wide_one():
    made = table(
        ("GET", "/a/{x}"),
        ("GET", "/a/{x:int}"),
        ("GET", "/a/{x:float}"),
        ("GET", "/a/{x:uuid}"),
        ("GET", "/a/b"),
        ("GET", "/a/{rest:path}"),
    )
    uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    assert made.find(b"/a/b", "GET") == ("/a/b", ())
    assert made.find(b"/a/7", "GET") == ("/a/{x:int}", (7,))
    assert made.find(b"/a/-7", "GET") == ("/a/{x:int}", (-7,))
    assert made.find(b"/a/7.5e3", "GET") == ("/a/{x:float}", (7500.0,))
    assert made.find(f"/a/{uuid.upper()}".encode(), "GET") == ("/a/{x:uuid}", (uuid,))
    assert made.find(b"/a/c", "GET") == ("/a/{x}", ("c",))
    assert made.find(b"/a/b/c", "GET") == ("/a/{rest:path}", ("b/c",))
    assert made.find(b"/a/", "GET") == ("/a/{rest:path}", ("",))
    assert made.find(b"/a", "GET") == (None, ())


def test_a_route_of_another_method_does_not_hide_one_further_down():
    made = table(("GET", "/a/b"), ("POST", "/a/{x}"))
    assert made.find(b"/a/b", "POST") == ("/a/{x}", ("b",))
    assert made.allowed(b"/a/b") == ["GET", "HEAD", "POST"]
    assert made.allowed(b"/b") == []


def test_an_encoded_slash_separates_nothing_and_a_nul_is_refused():
    made = table(("GET", "/a/{x}"), ("GET", "/{rest:path}"))
    assert made.find(b"/a/b%2Fc", "GET") == ("/a/{x}", ("b/c",))
    assert made.find(b"/%61/b", "GET") == ("/a/{x}", ("b",))
    assert made.find(b"/a/%252F", "GET") == ("/a/{x}", ("%2F",))
    for path in (b"/a/%00", b"/a/%ff", b"/%ed%a0%80"):
        with pytest.raises(BadRequestError):
            made.find(path, "GET")


def test_the_first_route_keeps_its_place_whatever_the_parameter_is_called():
    made = table(("GET", "/a/{x}"), ("POST", "/a/{x}"))
    assert made.add("GET", "/a/{y}", "second") == "/a/{x}"
    assert made.find(b"/a/1", "GET")[0] == "/a/{x}"


@given(st.binary(max_size=60))
def test_no_path_makes_the_table_fail(path: bytes):
    made = table(("GET", "/a/{x:int}/{y:uuid}"), ("GET", "/b/{x:float}"), ("GET", "/c/{r:path}"))
    quoted = b"/" + bytes(c for c in path if 33 <= c < 127)
    try:
        found, values = made.find(quoted, "GET")
    except BadRequestError:
        return
    assert found is None or isinstance(values, tuple)
    assert all(math.isfinite(value) for value in values if isinstance(value, float))


class Part(BaseModel):
    n: int


class Everything(BaseModel):
    n: int
    x: float = 0
    flag: bool = False
    text: str = ""
    either: int | str = 0
    maybe: int | None = None
    many: list[int] = []
    part: Part | None = None


FIELDS = Fields(Everything.model_json_schema())


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("n", ["5"], 5),
        ("n", ["five"], "five"),
        ("x", ["1e3"], 1000.0),
        ("flag", ["true"], True),
        ("flag", ["0"], False),
        ("text", ["5"], "5"),
        ("either", ["5"], "5"),
        ("maybe", ["null"], None),
        ("maybe", ["3"], 3),
        ("many", ["1"], [1]),
        ("many", ["1", "2"], [1, 2]),
        ("many", ["[1, 2]"], [1, 2]),
        ("part", ['{"n": 1}'], {"n": 1}),
        ("part", ["{"], "{"),
        ("unknown", ["5"], "5"),
        ("unknown", ["5", "6"], ["5", "6"]),
    ],
)
def test_a_text_becomes_what_the_schema_of_its_field_says(name, texts, value):
    assert FIELDS.value(name, texts) == value


@given(st.sampled_from(sorted(Everything.model_fields)), st.lists(st.text(), min_size=1))
def test_no_text_makes_a_conversion_fail(name, texts):
    decode.encode({name: FIELDS.value(name, texts)})


@given(st.binary())
def test_a_query_or_a_body_is_read_or_refused(raw: bytes):
    for read in (lambda: decode.pairs(raw, "query", FIELDS), lambda: decode.json_object(raw)):
        with suppress(InvalidInputError):
            assert isinstance(read(), dict)


def test_deep_nesting_and_long_numbers_are_refused():
    for raw in (
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":' + b"9" * 9999 + b"}",
    ):
        with pytest.raises(InvalidInputError):
            decode.json_object(raw)


class Node(BaseModel):
    n: int
    following: "Node | None" = None


def test_a_model_that_refers_to_itself_has_its_fields():
    fields = Fields(Node.model_json_schema())
    assert fields.names == {"n", "following"}
    assert fields.value("n", ["1"]) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Http("GET", "/a/{x:bool}"),
        lambda: Http("GET", "/a/{x}/{x}"),
        lambda: Http("GET", "/{x:path}/a"),
        lambda: Http("GET", "/a/"),
        lambda: Http("GET", "/a", headers={"a b": "c"}),
        lambda: Http("GET", "/a", status=404),
        lambda: Http("GET", "/a", condition="No Function"),
        lambda: Http("GET", "/a", cors=("example.org",)),
        lambda: Http("GET", "/a", where={"a": {"like": 1}}),
        lambda: Http("GET", "/a", max_in_flight=0),
        lambda: Http("GET", "/a", stream="xml"),  # type: ignore[arg-type]
        lambda: Webhook("/a"),
        lambda: Webhook("/a", secret_env="NOT A NAME"),
        lambda: Webhook("/a", secret_env="A", scheme="gitlab"),
    ],
)
def test_a_route_that_means_nothing_is_refused_where_it_is_written(make):
    with pytest.raises(ValidationError):
        make()


def test_a_route_that_sets_a_field_which_the_function_lacks_is_refused():
    app = App("a")

    @app.function("a.run")
    async def run(n: int) -> None: ...

    for route in (
        Http("GET", "/{m}"),
        Http("GET", "/", headers={"x-user": "user"}),
        Http("POST", "/", body="whole"),
    ):
        with pytest.raises(UsageError, match="has no field"):
            app.on(route)(run)
    app.on(Http("GET", "/{n:int}"))(run)


def test_the_settings_of_a_gateway_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("TRINE_HTTP_BODY_LIMIT", "10")
    monkeypatch.setenv("TRINE_HTTP_CORS", "https://a.example, https://b.example")
    options = GatewayOptions.load()
    assert options.body_limit == 10
    assert options.cors == ("https://a.example", "https://b.example")
    monkeypatch.setenv("TRINE_HTTP_COLOUR", "red")
    with pytest.raises(UsageError, match="TRINE_HTTP_COLOUR"):
        GatewayOptions.load()


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        (b"gzip", True),
        (b"br, gzip;q=0.5", True),
        (b"*", True),
        (b"gzip;q=0", False),
        (b"gzip; q=0.0", False),
        (b"br", False),
        (b"", False),
    ],
)
def test_gzip_is_used_where_it_is_accepted(accepted, takes):
    assert _takes_gzip(accepted) is takes
