"""The staircase: every experiment of a tag as a point, and the running best as a falling line.

matplotlib is imported when something is drawn: importing this module costs nothing.
"""

import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Format = Literal["png", "svg"]
MEDIA_TYPES: dict[Format, str] = {"png": "image/png", "svg": "image/svg+xml"}
WIDTH, HEIGHT, DPI = 8.0, 5.2, 200  # inches: 1600 x 1040 pixels, with type that a phone can show

GREEN, DARK_GREEN, GREY, RED = "#2ecc71", "#14803f", "#9aa0a6", "#d93025"
INK, FAINT = "#1f2328", "#59636e"
_TILT = math.radians(30)
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "trine",
    "text.parse_math": False,  # a $ in a label is a $
}
_LABEL = 8.0  # points
_GAP = 7.0  # points between a dot and its label
_DOT = 2.2  # points: what a dot needs around its middle


@dataclass(frozen=True, slots=True)
class Point:
    """A finished experiment. *number* is its place in the order of finish, from 1."""

    number: int
    val_bpb: float | None
    status: str  # keep, discard or crash
    label: str = ""


def render(points: list[Point], title: str, subtitle: str, format: Format) -> bytes:  # noqa: A002
    """Draw *points* as an image in *format*. Equal input gives equal bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # Labels are written by agents: a letter that the font lacks is a box, not a fault.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
        axes = figure.add_axes((0.105, 0.115, 0.875, 0.7))
        _frame(axes, points)
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        _heading(axes, renderer, title, subtitle)
        labels = _draw(axes, points)
        _Labels(axes, renderer).place(*labels)
        metadata = {"Date": None} if format == "svg" else {"Software": None}
        figure.savefig(out, format=format, metadata=metadata)
    return out.getvalue()


def _limits(values: list[float], kept: list[float]) -> tuple[float, float]:
    """Choose the lowest and the highest value to show: what is far above is cut off."""
    if not values:
        return 0.0, 1.0
    first, best = (kept or values)[0], min(values)
    gain = first - best
    if gain > 0.002 * first:
        ceiling = first + 0.45 * gain
    else:  # nothing was won that could be squashed: show three quarters of what was tried
        ceiling = max(sorted(values)[len(values) * 3 // 4], first * 1.002)
    top = min(max(values), ceiling)
    span = max(top - best, 0.004 * first)
    return best - 0.4 * span, top + 0.15 * span  # room for the labels


def _frame(axes: "Axes", points: list[Point]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max((point.number for point in points), default=1)
    axes.set_xlim(1 - max(0.6, 0.025 * last), last + max(0.6, 0.025 * last))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("experiments, in order of finish", fontsize=10, color=FAINT)
    axes.set_ylabel("val_bpb (lower is better)", fontsize=10, color=FAINT)
    axes.tick_params(labelsize=9, colors=FAINT, length=0, pad=5)
    axes.grid(visible=True, color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#c4c8cc")


def _heading(axes: "Axes", renderer: Any, title: str, subtitle: str) -> None:
    figure = axes.figure
    for text, size, y, weight, color in (
        (title, 13.5, 0.945, "bold", INK),
        (subtitle, 9.5, 0.898, "normal", FAINT),
    ):
        drawn = figure.text(0.105, y, text, fontsize=size, color=color, weight=weight)
        width = drawn.get_window_extent(renderer).width
        room = 0.875 * WIDTH * DPI
        if width > room:
            drawn.set_fontsize(max(size * room / width, 5))


@dataclass(frozen=True, slots=True)
class _Obstacle:
    x: float
    y: float
    radius: float  # points


@dataclass(frozen=True, slots=True)
class _Anchor:
    x: float
    y: float
    text: str
    weight: float  # how much the label matters: by what the step gained


def _draw(axes: "Axes", points: list[Point]) -> tuple[list[_Anchor], list[_Obstacle]]:
    """Draw all but the labels; return those, and what they must not cover."""
    results = [(point, point.val_bpb) for point in points if point.val_bpb is not None]
    crashes = [point.number for point in points if point.status == "crash"]
    kept = [(point, value) for point, value in results if point.status == "keep"]
    low, high = _limits([value for _, value in results], [value for _, value in kept])
    axes.set_ylim(low, high)
    if not results:
        axes.set_yticks([])
        said = "no experiment has a result yet" if points else "no experiment has finished yet"
        axes.text(0.5, 0.5, said, ha="center", color=FAINT, fontsize=12, transform=axes.transAxes)
    others = [(point, value) for point, value in results if point.status != "keep"]
    shown = [(point.number, value) for point, value in others if value <= high]
    above = [point.number for point, value in others if value > high]
    edge, floor = high - 0.02 * (high - low), low + 0.03 * (high - low)
    series: dict[str, Any] = {}
    corners: list[tuple[float, float]] = []
    if kept:
        steps = [point.number for point, _ in kept] + [max(point.number for point in points)]
        values = [value for _, value in kept] + [kept[-1][1]]
        corners += zip(steps, values, strict=True)
        (line,) = axes.step(steps, values, where="post", color=DARK_GREEN, lw=1.6, zorder=3)
        dots = axes.scatter(
            steps[:-1], values[:-1], s=46, c=GREEN, edgecolors="black", linewidths=0.6, zorder=5
        )
        series |= {f"kept ({len(kept)})": dots, "best so far": line}
    if others:
        xs, ys = [x for x, _ in shown], [y for _, y in shown]
        dots = axes.scatter(xs, ys, s=15, c=GREY, alpha=0.75, linewidths=0, zorder=2)
        series[f"discarded ({len(others)})"] = dots
    if above:
        ys = [edge] * len(above)
        dots = axes.scatter(above, ys, s=15, c=GREY, marker="^", linewidths=0, zorder=2)
        series[f"{len(above)} of these above the frame"] = dots
    if crashes:
        ys = [floor] * len(crashes)
        dots = axes.scatter(crashes, ys, s=24, c=RED, marker="x", linewidths=1.3, zorder=4)
        series[f"crashed ({len(crashes)})"] = dots
    _legend(axes, series)

    marks = [*shown, *((x, edge) for x in above), *((x, floor) for x in crashes)]
    marks += [(point.number, value) for point, value in kept]
    obstacles = [_Obstacle(x, y, _DOT) for x, y in marks]
    for start, end in itertools.pairwise(corners):
        obstacles += _between(start, end, high - low)
    return _anchors(kept), obstacles


def _between(
    start: tuple[float, float], end: tuple[float, float], height: float
) -> Iterable[_Obstacle]:
    """Walk along one step of the line, closely enough that no label slips through."""
    (x, y), (next_x, next_y) = start, end
    across = max(int((next_x - x) * 4), 1)
    down = max(int(abs(next_y - y) / height * 120), 1)
    yield from (_Obstacle(x + (next_x - x) * i / across, y, 0) for i in range(across))
    yield from (_Obstacle(next_x, y + (next_y - y) * i / down, 0) for i in range(down))


def _anchors(kept: list[tuple[Point, float]]) -> list[_Anchor]:
    anchors = []
    for index, (point, value) in enumerate(kept):
        outer = index in (0, len(kept) - 1)  # the baseline and the best come first
        gain = math.inf if outer else kept[index - 1][1] - value
        anchors.append(_Anchor(point.number, value, point.label, gain))
    return sorted((one for one in anchors if one.text), key=lambda one: -one.weight)


def _legend(axes: "Axes", series: dict[str, Any]) -> None:
    if series:
        where = {"loc": "lower left", "bbox_to_anchor": (-0.008, 1.0), "borderaxespad": 0.1}
        style: dict[str, Any] = {**where, "handletextpad": 0.35, "columnspacing": 1.2}
        style |= {"frameon": False, "fontsize": 8.5, "labelcolor": FAINT, "ncols": len(series)}
        axes.legend(list(series.values()), list(series), **style)


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle in the frame that is turned with the labels: there it lies straight."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )


class _Labels:
    """Writes labels at 30° where they cover nothing; what finds no room is left out."""

    def __init__(self, axes: "Axes", renderer: Any) -> None:
        self._axes = axes
        self._renderer = renderer
        self._pixels = DPI / 72
        self._placed: list[_Box] = []

    def place(self, anchors: list[_Anchor], obstacles: list[_Obstacle]) -> None:
        """Write what fits, cut shorter if need be; baseline and best may cover a dot."""
        to_pixels: Callable[[Any], Any] = self._axes.transData.transform
        marks = []
        for one in obstacles:
            (u, v), around = _turned(*to_pixels((one.x, one.y))), one.radius * self._pixels
            marks.append(_Box(u - around, v - around, u + around, v + around))
        for anchor in anchors:
            x, y = to_pixels((anchor.x, anchor.y))
            avoid = [marks, []] if math.isinf(anchor.weight) else [marks]
            # Below the line there is nothing but other labels: that side first.
            ways = itertools.product(avoid, _shorter(anchor.text), (False, True))
            for others, text, above in ways:
                if self._free(box := self._box(x, y, text, above=above), others):
                    self._placed.append(box)
                    self._write(anchor, text, above=above)
                    break

    def _size(self, text: str) -> tuple[float, float]:
        probe = self._axes.text(0, 0, text, fontsize=_LABEL)
        extent = probe.get_window_extent(self._renderer)
        probe.remove()
        return extent.width, extent.height

    def _box(self, x: float, y: float, text: str, *, above: bool) -> _Box:
        width, height = self._size(text)
        u, v = _turned(x, y)
        gap = _GAP * self._pixels
        left = u + gap if above else u - gap - width
        air = self._pixels  # a point between neighbours
        bottom = v - air if above else v - air - height
        return _Box(left, bottom, left + width, bottom + height + 2 * air)

    def _free(self, box: _Box, marks: list[_Box]) -> bool:
        area = self._axes.get_window_extent(self._renderer)
        right = self._axes.figure.bbox.x1
        for u, v in itertools.product((box.left, box.right), (box.bottom, box.top)):
            x, y = _turned(u, v, back=True)
            if not (area.x0 < x < right and area.y0 < y < area.y1):
                return False
        return not any(box.meets(one) for one in (*self._placed, *marks))

    def _write(self, anchor: _Anchor, text: str, *, above: bool) -> None:
        side = 1 if above else -1
        self._axes.annotate(
            text,
            (anchor.x, anchor.y),
            xytext=(side * _GAP * math.cos(_TILT), side * _GAP * math.sin(_TILT)),
            textcoords="offset points",
            rotation=30,
            rotation_mode="anchor",
            ha="left" if above else "right",
            va="bottom" if above else "top",
            fontsize=_LABEL,
            color=DARK_GREEN,
            zorder=6,
        )


def _shorter(text: str) -> list[str]:
    if " = " in text:  # of a constant the value and the end of its name tell most
        return [text, *("…" + text[-length:] for length in (20, 13) if len(text) > length + 2)]
    cuts = [text[:length] for length in (24, 14) if len(text) > length + 2]
    return [text, *(cut.rstrip(" ,:→") + "…" for cut in cuts)]


def _turned(x: float, y: float, *, back: bool = False) -> tuple[float, float]:
    cos, sin = math.cos(_TILT), math.sin(_TILT if back else -_TILT)
    return x * cos - y * sin, x * sin + y * cos
