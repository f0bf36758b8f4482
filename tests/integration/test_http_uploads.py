"""Files over HTTP: they go to the object store while they arrive, and payloads refer to them."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from gateways import gateway
from pydantic import BaseModel

from trine import App, Context
from trine_triggers import Http, Upload

pytestmark = pytest.mark.anyio
LARGE = bytes(range(256)) * 12_000  # 3 MiB: above the limit of a body and of a message


class Report(BaseModel):
    title: str
    pages: int = 0
    tags: list[str] = []
    file: Upload | None = None
    more: list[Upload] = []


def press() -> App:
    app = App("press")

    @app.on(Http("POST", "/reports"))
    @app.function("press.report")
    async def report(value: Report) -> Report:
        return value

    @app.function("press.size")
    async def size(ctx: Context, value: Report) -> int:
        assert value.file is not None
        return len(await ctx.client.objects.get(value.file.object))

    return app


async def test_a_file_of_a_form_becomes_a_reference_and_its_texts_have_their_types(nats, space):
    async with gateway(nats, space, press()) as (http, system):
        answer = await http.post(
            "/reports?tags=q",
            data={"title": "ü", "pages": "3"},
            files=[
                ("file", ("a.bin", LARGE, "application/x-thing")),
                ("more", ("b.txt", b"b", "text/plain")),
            ],
        )
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert (said["title"], said["pages"], said["tags"]) == ("ü", 3, ["q"])
        digest = hashlib.sha256(LARGE).hexdigest()
        assert said["file"] == {
            "object": digest,
            "size": len(LARGE),
            "content_type": "application/x-thing",
            "filename": "a.bin",
        }
        assert [one["filename"] for one in said["more"]] == ["b.txt"]
        assert await system.client.objects.get(digest) == LARGE
        reply = await http.post("/fn/press.size", json={"title": "", "file": said["file"]})
        assert reply.json() == len(LARGE)


async def test_an_object_is_put_and_got_in_pieces(nats, space):
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(LARGE), 50_000):
            yield LARGE[start : start + 50_000]

    async with gateway(nats, space, press()) as (http, _):
        answer = await http.post(
            "/objects?filename=l.bin", content=pieces(), headers={"content-type": "a/b"}
        )
        assert answer.status_code == 201, answer.text
        digest = hashlib.sha256(LARGE).hexdigest()
        assert answer.headers["location"] == f"/objects/{digest}"
        assert answer.json() == {
            "object": digest,
            "size": len(LARGE),
            "content_type": "a/b",
            "filename": "l.bin",
        }
        got = await http.get(f"/objects/{digest}")
        assert got.content == LARGE
        assert got.headers["x-content-type-options"] == "nosniff"
        again = await http.get(f"/objects/{digest}", headers={"if-none-match": got.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        head = await http.head(f"/objects/{digest}")
        assert (head.content, head.headers["content-length"]) == (b"", str(len(LARGE)))
        empty = await http.post("/objects", content=b"")
        assert empty.json()["size"] == 0
        assert (await http.get(f"/objects/{empty.json()['object']}")).content == b""


async def test_an_object_that_is_not_there_is_a_404(nats, space):
    async with gateway(nats, space, press()) as (http, _):
        for name in ("0" * 64, "abc", "..%2fsecret"):
            answer = await http.get(f"/objects/{name}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_an_upload_above_its_limit_is_a_413_and_leaves_nothing(nats, space, monkeypatch):
    monkeypatch.setenv("TRINE_HTTP_UPLOAD_LIMIT", "1000000")
    monkeypatch.setenv("TRINE_HTTP_BODY_LIMIT", "1000")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 50_000

    async with gateway(nats, space, press()) as (http, system):
        for answer in (
            await http.post("/objects", content=pieces()),
            await http.post("/objects", content=LARGE),
            await http.post("/reports", data={"title": "a"}, files={"file": LARGE}),
            await http.post("/reports", data={"title": "a" * 2000}, files={"file": b"x"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        names = system.client.bus.names
        left = await system.client.bus.subjects(f"OBJ_{names.objects}", names.object_chunk("*"))
        assert left == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"nonsense",
        b"--b\r\n\r\nno name\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\ncut in the mid',
        b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\n\xff\r\n--b--\r\n',
        b"--b\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" + b"a: b\r\n" * 100 + b"\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="' + b"a" * 9000 + b'"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n' * 300 + b"--b--\r\n",
    ],
)
async def test_a_form_that_is_broken_is_a_422(nats, space, body):
    async with gateway(nats, space, press()) as (http, _):
        kind = {"content-type": "multipart/form-data; boundary=b"}
        answer = await http.post("/reports", content=body, headers=kind)
        assert answer.status_code == 422, answer.text
        for bad in ("multipart/form-data", "multipart/form-data; boundary=" + "b" * 100):
            answer = await http.post("/reports", content=body, headers={"content-type": bad})
            assert answer.status_code == 422
