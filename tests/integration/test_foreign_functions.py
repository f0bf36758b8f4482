"""Functions of other languages: services of the plain NATS micro protocol, without our code."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import anyio
import nats as nats_py
import pytest
from gateways import gateway
from nats.micro import add_service
from outside import LANGUAGES, PYTHON, following, program, until

from trine import Client, streams
from trine.catalogue.directory import functions
from trine.errors import FunctionNotFoundError, InvalidInputError, NotFoundError, RemoteError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

DOCS = Path(__file__).parents[2] / "docs" / "languages.md"
NODE = ["node", "--import", "tsx", "worker.mts"]


@pytest.fixture(scope="session")
def typescript(tmp_path_factory) -> Path:
    """Give a directory with the TypeScript worker and its packages from npm."""
    assert shutil.which("npm"), "Node.js is needed: the worker is written in TypeScript"
    place = tmp_path_factory.mktemp("typescript")
    for file in (LANGUAGES / "typescript").iterdir():
        shutil.copy(file, place)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"],
        cwd=place,
        check=True,
        timeout=150,
        stdout=subprocess.DEVNULL,
    )
    return place


def test_the_examples_are_what_the_documentation_shows_and_short():
    page = DOCS.read_text()
    for file in ("typescript/worker.mts", "python/plain_worker.py"):
        text = (LANGUAGES / file).read_text()
        assert text in page, f"docs/languages.md shows another {file}"
        assert len(text.splitlines()) <= 40


def test_no_lock_file_with_the_host_of_a_registry_is_kept():
    kept = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", str(LANGUAGES)],
        capture_output=True,
        text=True,
        check=True,
        cwd=LANGUAGES,
    ).stdout
    assert "package.json" in kept
    assert not re.search(r"lock|node_modules", kept)


async def test_a_typescript_function_is_in_the_catalogue_with_its_schemas(
    nats, space, trine, typescript
):
    async with Client.connect(nats, namespace=space) as client:
        await streams.ensure(client.bus)
        async with following(client) as directory:
            async with program(NODE, nats, space, typescript) as worker:
                await until(directory, lambda known: "text.words" in known)
                info = directory.functions["text.words"]
                assert info.foreign
                assert info.doc == "Count the words of a text."
                assert info.timeout == 10
                assert info.input_schema["required"] == ["text"]
                assert info.output_schema["properties"] == {"words": {"type": "integer"}}
                assert await functions(client.bus) == directory.functions
                status, listed, _ = await trine.run("ls")
                assert status == 0
                assert "text.words  Count the words of a text." in listed
                worker.send_signal(signal.SIGTERM)
                with anyio.fail_after(10):
                    assert await worker.wait() == 0
            await until(directory, lambda known: not known)
            with pytest.raises(FunctionNotFoundError, match=r"text\.words"):
                await client.call("text.words", {"text": "a"})


async def test_a_typescript_function_is_called_by_client_command_and_http(
    nats, space, trine, typescript
):
    async with gateway(nats, space) as (http, system), program(NODE, nats, space, typescript):
        assert await system.client.call("text.words", {"text": "a b  c"}) == {"words": 3}
        with pytest.raises(InvalidInputError, match="text: must be a string") as refused:
            await system.client.call("text.words", {"text": 3})
        assert refused.value.status == 422
        status, said, _ = await trine.run("call", "text.words", "text=one two")
        assert (status, json.loads(said)) == (0, {"words": 2})
        async with following(system.client) as directory:
            await until(directory, lambda known: "text.words" in known)
        added = await system.client.call(
            "trigger.add",
            {
                "kind": "http",
                "config": {"method": "POST", "path": "/words"},
                "function": "text.words",
            },
        )
        assert added["served"] is True
        with anyio.fail_after(10):  # the route is there when the gateway has heard of it
            while (answer := await http.post("/words", json={"text": "a b"})).status_code == 404:
                await anyio.sleep(0.02)
        assert (answer.status_code, answer.json()) == (200, {"words": 2})
        answer = await http.post("/words", json={"text": 3})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
        document = (await http.get("/openapi.json")).json()
        assert document["paths"]["/words"]["post"]["summary"] == "Count the words of a text."
        await system.client.call("trigger.remove", {"id": added["binding"]["id"]})
        with anyio.fail_after(10):
            while (await http.post("/words", json={"text": "a b"})).status_code != 404:
                await anyio.sleep(0.02)


async def test_a_function_of_plain_nats_py_is_found_and_its_errors_are_ours(nats, space):
    async with Client.connect(nats, namespace=space) as client:
        await streams.ensure(client.bus)
        async with program(PYTHON, nats, space) as worker, following(client) as directory:
            await until(directory, lambda known: "text.upper" in known)
            assert await client.call("text.upper", {"text": "a"}) == {"text": "A"}
            with pytest.raises(InvalidInputError, match="text: must be a string"):
                await client.call("text.upper", {"text": 3})
            worker.send_signal(signal.SIGTERM)
            with anyio.fail_after(10):
                assert await worker.wait() == 0
            await until(directory, lambda known: "text.upper" not in known)


@pytest.mark.parametrize(
    ("status", "body", "error", "code"),
    [
        ("404", b"", NotFoundError, "not_found"),
        ("418", b'{"code": "teapot", "message": "short and stout"}', RemoteError, "teapot"),
        ("422", b"not json", InvalidInputError, "invalid_input"),
    ],
)
async def test_an_error_in_the_headers_of_micro_arrives_as_our_exception(
    nats, space, status, body, error, code
):
    async def refuse(request) -> None:
        await request.respond_error(status, "no such luck", data=body)

    async with Client.connect(nats, namespace=space) as client:
        plain = await nats_py.connect(nats)
        service = await add_service(plain, name="luck", version="1.0.0")
        await service.add_endpoint(name="x", subject=f"{space}.fn.luck.try", handler=refuse)
        await plain.flush()
        with pytest.raises(error) as raised:
            await client.call("luck.try")
        assert raised.value.code == code
        assert raised.value.status == int(status)
        await service.stop()
        await plain.close()


async def test_an_endpoint_that_is_added_to_a_running_service_is_found(nats, space):
    async def answer(request) -> None:
        await request.respond(b"1")

    async with Client.connect(nats, namespace=space) as client:
        await streams.ensure(client.bus)
        plain = await nats_py.connect(nats)
        service = await add_service(plain, name="late", version="1.0.0")
        async with following(client) as directory:
            await service.add_endpoint(name="a", subject=f"{space}.fn.late.a", handler=answer)
            await until(directory, lambda known: "late.a" in known)
            await service.add_endpoint(name="b", subject=f"{space}.fn.late.b", handler=answer)
            await until(directory, lambda known: "late.b" in known, 15)
            found = directory.functions["late.b"]
            assert (found.doc, found.input_schema, found.timeout) == ("", {}, None)
        await service.stop()
        await plain.close()


async def test_replicas_in_two_languages_share_one_function(nats, space, serve):
    from trine import App

    app = App("shared")

    @app.function("shared.who")
    async def who() -> str:
        return "trine"

    async def answer(request) -> None:
        await request.respond(b'"plain"')

    async with serve(app) as client:
        plain = await nats_py.connect(nats)
        service = await add_service(plain, name="shared", version="1.0.0")
        await service.add_endpoint(name="who", subject=f"{space}.fn.shared.who", handler=answer)
        await plain.flush()
        said = {await client.call("shared.who") for _ in range(60)}
        assert said == {"trine", "plain"}
        await service.stop()
        await plain.close()
