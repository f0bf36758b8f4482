"""The description of the gateway is valid, and schemathesis finds that the gateway keeps to it."""

import subprocess
import sysconfig
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import anyio
import pytest
import schemathesis as loader
from gateways import gateway
from pydantic import BaseModel, ConfigDict, Field

from trine import App
from trine.errors import ConflictError, NotFoundError
from trine_functions.app import app as research
from trine_triggers import Http, Upload

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


Factor = Annotated[float, Field(ge=-1000, le=1000)]


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Size(BaseModel):
    width: int = Field(ge=0, le=1000)
    height: float = Field(default=1.0, ge=0, le=1000)


class Shape(BaseModel):
    name: str = Field(min_length=1, max_length=20)
    colour: Colour = Colour.RED
    size: Size | None = None
    tags: list[str] = Field(default_factory=list, max_length=5)
    parts: "list[Shape]" = Field(default_factory=list, max_length=2)
    visible: bool = True


class Found(BaseModel):
    shapes: list[Shape]
    total: int


class Drawing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str
    file: Upload | None = None


def shapes() -> App:
    app = App("shapes")

    @app.on(Http("POST", "/shapes", status=201))
    @app.on(Http("PUT", "/shapes/{name}"))
    @app.function("shapes.put")
    async def put(shape: Shape) -> Shape:
        """Store a shape."""
        return shape

    @app.on(Http("GET", "/shapes", headers={"X-User": "user"}))
    @app.function("shapes.find")
    async def find(
        colour: Colour | None = None, limit: int = 10, size: Size | None = None, user: str = ""
    ) -> Found:
        return Found(shapes=[], total=limit)

    @app.on(Http("GET", "/shapes/{n:int}/{u:uuid}"))
    @app.on(Http("DELETE", "/shapes/{n:int}/{u:uuid}"))
    @app.function("shapes.get")
    async def get(n: int, u: str) -> Shape:
        if n % 2:
            raise ConflictError("odd", n=n)
        raise NotFoundError("no shape", n=n)

    @app.on(Http("POST", "/sums", body="numbers"))
    @app.function("shapes.sum")
    async def total(numbers: list[int], factor: Factor = 1.0) -> float:
        return float(len(numbers)) * factor

    @app.on(Http("GET", "/steps"))
    @app.function("shapes.steps")
    async def steps(n: int = Field(default=2, ge=0, le=5)) -> AsyncIterator[Size]:
        for number in range(n):
            yield Size(width=number)

    @app.on(Http("POST", "/drawings"))
    @app.function("shapes.draw")
    async def draw(drawing: Drawing) -> Drawing:
        return drawing

    @app.function("shapes.nothing")
    async def nothing() -> None: ...

    return app


async def run_schemathesis(place: Path, *arguments: str) -> str:
    """Run it; its findings fail the test."""
    program = Path(sysconfig.get_path("scripts")) / "schemathesis"
    ended = await anyio.run_process(
        [str(program), "run", *arguments], check=False, stderr=subprocess.STDOUT, cwd=place
    )
    text = ended.stdout.decode()
    assert ended.returncode == 0, text[-6000:]
    return text


async def test_schemathesis_finds_no_fault_in_a_served_app(nats, space, tmp_path):
    async with gateway(nats, space, shapes()) as (_, system):
        said = await run_schemathesis(
            tmp_path,
            f"{system.http[0]}/openapi.json",
            "--phases=examples,coverage,fuzzing",
            # A function takes what its pydantic model takes: "5" for 5 is not refused.
            "--exclude-checks=negative_data_rejection",
            "--max-examples=15",
            "--seed=1",
            "--suppress-health-check=all",
            "--include-path-regex=^/(shapes|sums|steps|drawings|fn/shapes)",
        )
        assert said.count("15 passed") == 2, said[-3000:]  # in both phases


async def test_the_description_of_the_research_app_is_valid(nats, space):
    async with gateway(nats, space, research) as (http, _):
        document = (await http.get("/openapi.json")).json()
    assert "/api/experiment/complete" in document["paths"]
    read = loader.openapi.from_dict(document)
    read.validate()  # against the metaschema of OpenAPI 3.1
    operations = [one.ok() for one in read.get_all_operations()]
    assert len(operations) == sum(map(len, document["paths"].values()))
    assert len({one.definition.raw["operationId"] for one in operations}) == len(operations)
