"""The staircase, as far as a program can see: what is drawn is looked at by people."""

import io
import random
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from trine_functions.chart import Point, _Labels, _limits, render

SIZE = (1600, 1040)


def a_search(count: int) -> list[Point]:
    chance = random.Random(7)
    best = 1.4
    points = [Point(1, best, "keep", "baseline")]
    for number in range(2, count + 1):
        if chance.random() < 0.08:
            points.append(Point(number, None, "crash", "x"))
        elif chance.random() < 0.2:
            best -= chance.expovariate(100)
            points.append(Point(number, best, "keep", "MATRIX_LR 0.04 → 0.055"))
        else:
            points.append(Point(number, best + chance.expovariate(30), "discard"))
    return points


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point(1, None, "crash")],
        [Point(1, 1.2, "keep", "baseline")],
        [Point(1, 1.2, "discard"), Point(2, 1.2, "discard")],
        [Point(1, 1.2, "keep"), *(Point(place, 1.3, "discard") for place in range(2, 9))],
        a_search(120),
    ],
    ids=["nothing", "a crash", "one result", "no keep", "no improvement", "a long search"],
)
def test_any_course_of_a_search_becomes_a_picture(points: list[Point]) -> None:
    image = Image.open(io.BytesIO(render(points, "title", "subtitle", "png")))
    image.load()
    assert image.size == SIZE
    assert image.format == "PNG"


def test_the_svg_is_one_document_that_loads_nothing() -> None:
    drawn = render(a_search(12), "a <title> & more", "", "svg")
    root = ET.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert b"<script" not in drawn
    links = [value for node in root.iter() for name, value in node.items() if "href" in name]
    assert all(link.startswith("#") for link in links)


def test_equal_points_give_equal_bytes() -> None:
    for kind in ("png", "svg"):
        assert render(a_search(12), "t", "s", kind) == render(a_search(12), "t", "s", kind)


def test_hostile_labels_are_drawn_as_text() -> None:
    label = r"$\frac{1}{0}$ 学習率 🚀 <b>"
    points = [Point(1, 1.2, "keep", label), Point(2, 1.1, "keep", label)]
    assert render(points, label * 9, label * 9, "png")[:4] == b"\x89PNG"


def test_a_far_outlier_does_not_squash_the_steps() -> None:
    low, high = _limits([1.4, 1.35, 1.3, 9.0], [1.4, 1.35, 1.3])
    assert low < 1.3
    assert 1.4 < high < 1.5


def test_labels_never_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = []
    place = _Labels.place

    def recorded(self: _Labels, *given: object) -> None:
        place(self, *given)  # type: ignore[arg-type]
        placed.extend(self._placed)

    monkeypatch.setattr(_Labels, "place", recorded)
    render(a_search(120), "t", "s", "png")
    assert len(placed) > 5
    pairs = [(a, b) for at, a in enumerate(placed) for b in placed[at + 1 :]]
    assert not any(a.meets(b) for a, b in pairs)


def test_importing_the_module_does_not_load_matplotlib() -> None:
    code = "import sys, trine_functions.chart; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
