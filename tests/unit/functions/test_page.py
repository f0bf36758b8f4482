"""The page: everything on it, nothing around it, and no text that becomes markup."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

from trine_functions.contracts import Experiment, Tag, Target
from trine_functions.page import render

AT = datetime(2026, 3, 11, 12, tzinfo=UTC)
TAG = Tag(name="mar11", branch="autoresearch/mar11", created_at="")
HOSTILE = "<script>alert(1)</script>\"'&"


def experiment(place: int, status: str, value: float | None = None, **more: Any) -> Experiment:
    return Experiment(
        **{
            "id": f"exp-{place}",
            "tag": "mar11",
            "status": status,
            "val_bpb": value,
            "started_at": f"2026-03-11T00:{place:02}:00+00:00",
            "finished_at": f"2026-03-11T00:{place:02}:30+00:00",
            "training_seconds": 30.0,
            **more,
        }
    )


class Tree(HTMLParser):
    """Collects tags and addresses, and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Tree:
    tree = Tree()
    tree.feed(text)
    tree.close()
    assert tree.open == []
    return tree


def test_the_page_says_baseline_best_noise_and_counts() -> None:
    found = [
        experiment(1, "keep", 1.0, operator="baseline"),
        experiment(2, "discard", 1.02, operator="baseline"),
        experiment(3, "keep", 1.005, knobs={"LR": 0.5}, hypothesis="larger steps"),
        experiment(
            4, "crash", error="Traceback\n  …\nOutOfMemoryError: no room", crash_class="oom"
        ),
        experiment(5, "running", finished_at=None, phase="queued", training_seconds=None),
    ]
    text = render(TAG, found, b"<svg/>", at=AT)
    parsed(text)
    assert "val_bpb 1.0100 → 1.0000" in text
    assert "may be noise" in text
    for words in ("<b>2</b> kept", "<b>1</b> crashed", "<b>1</b> running", "<b>2.0</b> minutes"):
        assert words in text
    assert "LR = 0.5" in text
    assert "oom: OutOfMemoryError: no room" in text
    assert "queued" in text
    assert "+0.0050" in text


def test_the_page_needs_nothing_else() -> None:
    tree = parsed(render(TAG, [experiment(1, "keep", 1.0)], b"\x89PNG", "png", at=AT))
    assert len(tree.addresses) == 1
    assert tree.addresses[0].startswith("data:image/png;base64,")
    assert not {"script", "link", "iframe"} & set(tree.seen)


def test_what_agents_write_is_escaped_everywhere() -> None:
    hostile = experiment(
        1, "keep", 1.0, hypothesis=HOSTILE, description=HOSTILE, error=HOSTILE, worker=HOSTILE,
        gpu_id=HOSTILE, commit_sha=HOSTILE, knobs={HOSTILE: HOSTILE}, id=HOSTILE,
    )  # fmt: skip
    target = Target(name=HOSTILE, tree="x", command="y", budget_seconds=60)
    text = render(TAG.model_copy(update={"target": target}), [hostile], b"", at=AT)
    tree = parsed(text)
    assert "script" not in tree.seen
    assert "&lt;script&gt;" in text


def test_a_tag_without_experiments_has_a_page() -> None:
    text = render(TAG, [], b"", at=AT)
    parsed(text)
    assert "no experiments yet" in text
