"""The report of a tag as one HTML page that needs nothing else: no scripts, no other files."""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from trine_functions.chart import MEDIA_TYPES, Format
from trine_functions.contracts import Experiment, Tag
from trine_functions.outcome import (
    Outcome,
    against_best_before,
    in_order_of_finish,
    knob_changes,
    knob_text,
    one_line,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --line: #d8dee4;
  --back: #ffffff; --panel: #f6f8fa; --good: #14803f; --bad: #c5221f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9198a1; --line: #30363d;
  --back: #0d1117; --panel: #161b22; --good: #3fb950; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 72rem; color: var(--ink);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.1rem; font-weight: 600; color: var(--faint); margin: 0;
  overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.headline { font-size: clamp(1.4rem, 5vw, 2.2rem); font-weight: 700; line-height: 1.2;
  margin: .25rem 0; }
.remark { color: var(--faint); max-width: 44rem; margin: 0; }
.counts { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; padding: 0;
  list-style: none; }
.counts li { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .35rem .8rem; color: var(--faint); }
.counts b { color: var(--ink); font-variant-numeric: tabular-nums; }
.chart { width: 100%; height: auto; display: block; background: #fff; border-radius: 8px;
  border: 1px solid var(--line); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem;
  border-top: 1px solid var(--line); }
thead th { border-top: 0; background: var(--panel); color: var(--faint); font-weight: 600;
  white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.why { min-width: 18rem; overflow-wrap: anywhere; }
.knobs { min-width: 11rem; overflow-wrap: anywhere; }
td.keep, .better { color: var(--good); } td.crash, .error { color: var(--bad); }
td.discard, td.running, .aside, footer { color: var(--faint); }
.best { background: color-mix(in srgb, var(--good) 12%, transparent); }
code { font: .85em ui-monospace, monospace; }
footer { margin-top: 2rem; font-size: .85rem; }
"""


def render(
    tag: Tag,
    experiments: list[Experiment],
    image: bytes,
    image_format: Format = "svg",
    *,
    at: datetime,
) -> str:
    """Return the page. Everything that an agent wrote is escaped; nothing is loaded or run."""
    outcome = Outcome.of(experiments)
    source = f"data:{MEDIA_TYPES[image_format]};base64,{base64.b64encode(image).decode()}"
    name = escape(tag.name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{name}: research report</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{name}{_target(tag)}</h1>
<p class="headline">{escape(outcome.headline)}</p>
<p class="remark">{escape(outcome.remark)}</p>
<ul class="counts">{_counts(outcome, experiments)}</ul>
<img class="chart" src="{source}" width="1600" height="1040"
  alt="{escape(f"Staircase of the best val_bpb of {tag.name}: {outcome.headline}")}">
{_best(outcome, experiments)}
<h2>Experiments</h2>
<div class="wide"><table>
<thead><tr><th class="number">#</th><th>status</th><th class="number">val_bpb</th>
<th class="number">to best before</th><th>knobs changed</th><th>hypothesis</th><th>ran on</th>
<th class="number">seconds</th></tr></thead>
<tbody>
{"".join(_rows(outcome, experiments))}</tbody></table></div>
<footer>Numbered in order of finish, as in the chart. Knobs are compared with the experiment
that each was derived from. {_time(experiments)}Written {_clock(at)}.</footer>
</body>
</html>
"""


def _target(tag: Tag) -> str:
    if tag.target is None:
        return ""
    return escape(f" · {tag.target.name}, {tag.target.budget_seconds:g} s of training each")


def _counts(outcome: Outcome, experiments: list[Experiment]) -> str:
    minutes = sum(one.training_seconds or 0 for one in experiments) / 60
    shown = [
        (str(outcome.total), "experiments"),
        (str(outcome.kept), "kept"),
        (str(outcome.discarded), "discarded"),
        (str(outcome.crashed), "crashed"),
        *([(str(outcome.running), "running")] if outcome.running else []),
        (f"{minutes:.1f}", "minutes of training"),
    ]
    return "".join(f"<li><b>{value}</b> {word}</li>" for value, word in shown)


def _best(outcome: Outcome, experiments: list[Experiment]) -> str:
    leader = next((one for one in experiments if one.id == outcome.best_id), None)
    if leader is None:
        return ""
    knobs = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(knob_text(value))}</code></td></tr>"
        for name, value in sorted(leader.knobs.items())
    )
    table = f'<div class="wide"><table>{knobs}</table></div>' if knobs else ""
    said = "Its knobs, where they differ from the base:" if knobs else "Its knobs are the base's."
    about = [
        f"<code>{escape(leader.id)}</code>",
        *([f"commit <code>{escape(leader.commit_sha[:7])}</code>"] if leader.commit_sha else []),
        *([f"{leader.num_params_m:g} M parameters"] if leader.num_params_m else []),
        *([f"{leader.peak_vram_mb:,.0f} MB at the peak"] if leader.peak_vram_mb else []),
    ]
    return f"<h2>The best</h2>\n<p>{', '.join(about)}. {said}</p>\n{table}"


def _rows(outcome: Outcome, experiments: list[Experiment]) -> Iterable[str]:
    by_id = {one.id: one for one in experiments}
    differences = against_best_before(experiments)
    ended = in_order_of_finish(experiments)
    for number, one in enumerate(ended, 1):
        parent = by_id.get(one.parent_id or "")
        best = one.id == outcome.best_id
        yield _row(str(number), one, parent, differences.get(one.id), best=best)
    for one in experiments:
        if one.status == "running":
            yield _row("", one, by_id.get(one.parent_id or ""), None, best=False)


def _row(
    number: str, one: Experiment, parent: Experiment | None, difference: float | None, *, best: bool
) -> str:
    status = one.phase if one.status == "running" else one.status
    changes = "<br>".join(escape(change) for change in knob_changes(one, parent))
    cells = [
        ("number", number),
        (one.status, status),
        ("number", "" if one.val_bpb is None else f"{one.val_bpb:.4f}"),
        (
            "number better" if (difference or 0) < 0 else "number",
            "" if difference is None else f"{difference:+.4f}",
        ),
        ("knobs", f"<code>{changes}</code>" if changes else ""),
        ("why", _why(one)),
        ("", " · ".join(escape(word) for word in (one.gpu_id, one.worker) if word)),
        ("number", "" if one.training_seconds is None else f"{one.training_seconds:.0f}"),
    ]
    kind_of_row = "best" if best else one.status
    row = "".join(f'<td class="{kind}">{content}</td>' for kind, content in cells)
    return f'<tr class="{kind_of_row}" title="{escape(one.id)}">{row}</tr>\n'


def _why(one: Experiment) -> str:
    what, why = one.description.strip(), one.hypothesis.strip()
    words = escape(why or what)
    if what and why and what not in why:
        words += f'<br><span class="aside">{escape(what)}</span>'
    if one.error:
        last = one.error.strip().splitlines()[-1:] or [""]
        failure = f"{one.crash_class or 'error'}: {one_line(last[0], 300)}"
        words += f'<br><span class="error">{escape(failure)}</span>'
    return words


def _time(experiments: list[Experiment]) -> str:
    ends = [one.finished_at for one in experiments if one.finished_at]
    starts = [one.started_at for one in experiments if one.started_at]
    if not ends or not starts:
        return ""
    first, last = datetime.fromisoformat(min(starts)), datetime.fromisoformat(max(ends))
    hours, seconds = divmod(max((last - first).total_seconds(), 0), 3600)
    took = f"{hours:.0f} h {seconds // 60:.0f} min" if hours else f"{seconds / 60:.1f} min"
    return f"From {_clock(first)} to {_clock(last)}: {took}. "


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
