"""The pictures of a race: best so far, where each searcher looked, what each knob did to scores."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from tuner.budget import to_minutes
from tuner.escape import in_picture
from tuner.files import write_atomically
from tuner.importance import (
    Cell,
    effects,
    in_words,
    interesting_floor,
    measured,
    stands_out,
)
from tuner.progress import at, progress
from tuner.report import SCORE_NAME, Outcome, lines_of, main_knobs
from tuner.space import Choice, Domain, Float, Int, SearchSpace
from tuner.trial import Trial, TrialState

# Okabe and Ito's colours, told apart by colour-blind eyes as well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")

_POINT: dict[str, Any] = {"markersize": 5, "markeredgewidth": 0}
_RING: dict[str, Any] = {"markersize": 3.4, "markeredgewidth": 0.8, "markerfacecolor": "none"}


def draw_race(
    path: Path,
    outcomes: Sequence[Outcome],
    unit: str,
    title: str,
    score_name: str = SCORE_NAME,
) -> None:
    """Write a PNG: a panel of best-so-far lines over a panel of probes for each searcher."""
    names = list(dict.fromkeys(o.row.searcher for o in outcomes))
    figure = Figure(figsize=(max(9.0, 3.6 * len(names)), 8.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(in_picture(title), fontsize=15, fontweight="bold", x=0.01, ha="left")
    # The legend has a strip of its own: there is no corner of the axes that trials may not fill.
    strip = 0.07 * (1 + -(-len(names) // 4))
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.15, strip, 1))  # type: ignore[misc]
    colours = {n: COLOURS[i % len(COLOURS)] for i, n in enumerate(names)}
    seeds = len({o.row.seed for o in outcomes})
    axes, ranks = top.subplots(1, 2, width_ratios=(2, 1)) if seeds > 1 else (top.subplots(), None)
    if ranks is not None:
        _draw_ranks(ranks, outcomes, colours, unit)
    floor = _interesting_floor(outcomes)
    for name in names:
        _draw_lines(axes, [o for o in outcomes if o.row.searcher == name], colours[name], floor)
    axes.set_xlabel(unit)
    axes.set_ylabel(score_name)
    short = any(_is_short(t) for o in outcomes for t in o.history.trained)
    rings = "; rings did not get to the end" if short else ""
    axes.set_title(f"best so far (line) and every trial (points{rings})", loc="left", fontsize=11)
    axes.set_ylim(bottom=floor)
    middle.legend(
        *axes.get_legend_handles_labels(),
        loc="center",
        ncols=4,
        frameon=False,
        title=f"median and quartiles of {seeds} seeds" if seeds > 1 else None,
        title_fontsize=9,
    )
    _draw_probes(bottom, names, outcomes, floor, score_name == SCORE_NAME)
    for one in figure.findobj(Axes):
        one.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".") or "png", dpi=130)
    write_atomically(path, picture.getvalue())


def _is_short(trial: Trial) -> bool:
    return trial.state is not TrialState.COMPLETED


def _interesting_floor(outcomes: Sequence[Outcome]) -> float:
    """Where the score axis begins: trials far below the median would flatten all the rest."""
    scores = [t.score for o in outcomes for t in o.history.trained if t.score is not None]
    if not scores:
        return 0.0
    return interesting_floor(scores) - 0.01 * (max(scores) - float(np.median(scores)))


def _draw_lines(axes: Axes, outcomes: Sequence[Outcome], colour: str, floor: float) -> None:
    name = outcomes[0].row.searcher
    for outcome in outcomes:
        scored = [t for t in outcome.history.trained if t.score is not None]
        for is_short, marker in ((False, _POINT), (True, _RING)):
            done = [t for t in scored if _is_short(t) is is_short]
            axes.plot(
                [to_minutes(t.curve[-1].at_ns) for t in done],
                [max(t.score or 0.0, floor) for t in done],
                "o",
                color=colour,
                alpha=0.45 / len(outcomes) ** 0.5,
                clip_on=False,
                in_layout=False,  # unclipped points that are not there would have a place in it
                **marker,
            )
    lines = lines_of(outcomes)[name]
    ends = [to_minutes(sum(o.ledger.values())) for o in outcomes]
    grid = np.linspace(0, max(ends), 400)
    values = np.array([at(line, grid) for line in lines])  # seeds x 400
    known = ~np.isnan(values).any(0)
    middle = np.median(values, 0)
    axes.plot(grid[known], middle[known], color=colour, linewidth=2.4, label=in_picture(name))
    if len(lines) > 1:
        low, high = np.quantile(values[:, known], [0.25, 0.75], axis=0)
        axes.fill_between(grid[known], low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_ranks(
    axes: Axes, outcomes: Sequence[Outcome], colours: dict[str, str], unit: str
) -> None:
    """The mean rank over the seeds at each minute; 1 is the best."""
    until = max(to_minutes(sum(o.ledger.values())) for o in outcomes)
    for name, one in progress(lines_of(outcomes), until).items():
        axes.plot(one.minutes, one.rank, color=colours[name], linewidth=2.0, label=in_picture(name))
    axes.set_ylim(len(colours) + 0.1, 0.9)
    axes.set_yticks(range(1, len(colours) + 1))
    axes.set_xlabel(unit)
    axes.set_title("mean rank, 1 is the best", loc="left", fontsize=11)


def _draw_probes(
    figure: Any,
    names: Sequence[str],
    outcomes: Sequence[Outcome],
    floor: float,
    are_fractions: bool,
) -> None:
    space = outcomes[0].row.space
    x, y = main_knobs(outcomes)
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    scores = [t.score for o in outcomes for t in o.history.trained if t.score is not None]
    span = {"vmin": floor, "vmax": max(scores, default=1.0), "cmap": "viridis"}
    shown = None
    for panel, name in zip(panels, names, strict=True):
        trials = [t for o in outcomes if o.row.searcher == name for t in o.history.trained]
        scored = [t for t in trials if t.score is not None]
        others = [t for t in trials if t.score is None]
        place = [_place(space, k, [t.config[k] for t in scored]) for k in (x, y)]
        shown = panel.scatter(
            *place,
            c=[t.score for t in scored],
            s=[14 if _is_short(t) else 42 for t in scored],
            edgecolors="white",
            linewidths=0.6,
            **span,
        )
        crosses = [_place(space, k, [t.config[k] for t in others]) for k in (x, y)]
        panel.plot(*crosses, "x", color="#999999", markersize=6, label="no score")
        best = max(scored, key=lambda t: (t.score or 0.0, -t.number), default=None)
        if best is not None:
            spot = [_place(space, k, [best.config[k]]) for k in (x, y)]
            panel.plot(*spot, "*", color="#D55E00", markersize=17, markeredgecolor="white")
        size = 11 if len(name) < 20 else 8
        panel.set_title(f"{in_picture(name)}: {len(trials)} trials", loc="left", fontsize=size)
        panel.set_xlabel(in_picture(x))
        _scale(panel, "x", space[x])
        _scale(panel, "y", space[y])
    panels[0].set_ylabel(in_picture(y) if y != x else "")
    if shown is not None:
        bar = figure.colorbar(shown, ax=list(panels), pad=0.01, aspect=25)
        if are_fractions:
            bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        bar.outline.set_visible(False)


def _place(space: SearchSpace, name: str, values: Sequence[Any]) -> list[Any]:
    """Where values are on a knob's axis; NaN, which is not drawn, where it is not there."""
    domain = space[name]
    places = map(domain.index, values) if isinstance(domain, Choice) else values
    return [math.nan if place is None else place for place in places]


def _scale(panel: Axes, side: str, domain: Domain) -> None:
    if isinstance(domain, Choice):
        names = [in_picture(str(option)) for option in domain.options]
        getattr(panel, f"set_{side}ticks")(range(len(names)), names)
        return
    low, high = float(domain.low), float(domain.high)
    if isinstance(domain, Int):
        low, high = low - 0.5, high + 0.5
    if domain.log:
        room = (high / low) ** 0.04
        panel.set(**{f"{side}scale": "log", f"{side}lim": (low / room, high * room)})
        axis = getattr(panel, f"{side}axis")
        if high > 100 * low:
            panel.minorticks_off()  # else they are a third of the time that drawing takes
        else:  # over few decades powers of ten are too few, and all between them too many
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        return
    room = 0.04 * (high - low)
    panel.set(**{f"{side}lim": (low - room, high + room)})
    if isinstance(domain, Int):
        getattr(panel, f"{side}axis").set_major_locator(MaxNLocator("auto", integer=True))


def draw_effects(
    path: Path,
    outcomes: Sequence[Outcome],
    found: Mapping[str, Any] | None,
    title: str,
    score_name: str = SCORE_NAME,
) -> None:
    """Write a PNG with a panel for each knob: scores over its values, and quartiles in its cells.

    `found` is `importance` of summary.json.
    """
    space = outcomes[0].row.space
    trials = [t for o in outcomes for t in o.history.trained]
    epoch, results = measured(space, trials)
    columns = min(len(space), 4)
    rows = -(-len(space) // columns)
    figure = Figure(figsize=(max(7.5, 3.5 * columns), 3.1 * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    words = f"{in_picture(title)}\n{in_picture(in_words(found))}"
    figure.suptitle(words, fontsize=12, fontweight="bold", x=0.01, ha="left")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    scores = [score for _, score in results]
    floor = interesting_floor(scores) if scores else _interesting_floor(outcomes)
    for panel, (knob, cells) in zip(panels.flat, effects(space, trials).items(), strict=False):
        _draw_scores(panel, outcomes, knob, epoch, floor)
        _draw_cells(panel, cells, floor)
        share = f"  {100 * found['shares'][knob]:.0f} %" if found and stands_out(found) else ""
        panel.set_title(f"{in_picture(knob)}{share}", loc="left", fontsize=11)
        _scale(panel, "x", space[knob])
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels.flat[len(space) :]:
        panel.set_visible(False)
    is_clipped = any(t.score is not None and t.score < floor for t in trials)
    note = f"\n(below {floor:.2f}: at the edge)" if is_clipped else ""
    for panel in panels[:, 0]:
        panel.set_ylabel(f"{score_name}{note}")
    panels.flat[0].plot([], "o", ms=4, mfc="none", mec="#666666", label="shorter training")
    figure.legend(
        *panels.flat[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=6,
        frameon=False,
        title="In a cell the other knobs are wherever the searchers put them." if results else None,
        title_fontsize=9,
    )
    _save(figure, path)


def _draw_scores(
    panel: Axes, outcomes: Sequence[Outcome], knob: str, epoch: int, floor: float
) -> None:
    """Trials with the score at `epoch`, hollow those that did not get so far; 0 is any epoch."""
    space = outcomes[0].row.space
    shuffler = np.random.default_rng(0)
    width = 0.0 if isinstance(space[knob], Float) or getattr(space[knob], "log", False) else 0.5
    for i, name in enumerate(dict.fromkeys(o.row.searcher for o in outcomes)):
        # Outside the layout, in which unclipped points that are not there would have a place.
        style: dict[str, Any] = {"clip_on": False, "in_layout": False}
        style["color"] = COLOURS[i % len(COLOURS)]
        trials = [t for o in outcomes if o.row.searcher == name for t in o.history.trained]
        scored = [t for t in trials if t.score is not None]
        known = [{o.epoch: o.score for o in t.curve} for t in scored]
        x = np.array(_place(space, knob, [t.config[knob] for t in scored]), dtype=float)
        x += width * (shuffler.random(len(x)) - 0.5)  # or equal values would hide one another
        y = np.array([k.get(epoch, t.score) for k, t in zip(known, scored, strict=True)])
        y = np.maximum(y.astype(float), floor)
        whole = np.array([epoch in k or epoch == 0 for k in known], dtype=bool)
        style["alpha"] = min(0.65, 12 / (len(x) + 1) ** 0.5)
        panel.plot(*(x[whole], y[whole], "o"), label=in_picture(name), **_POINT, **style)
        panel.plot(*(x[~whole], y[~whole], "o"), **_RING, **style)


def _draw_cells(panel: Axes, cells: Sequence[Cell], floor: float) -> None:
    """Steps and not a line through them: a median is that of a whole cell."""
    label = "median and quartiles of a cell"
    for cell in cells:
        if cell.quartiles is None:
            continue
        low, middle, high = np.maximum(cell.quartiles, floor)
        ends = [cell.low, cell.high]
        panel.fill_between(ends, low, high, color="#333333", alpha=0.16, linewidth=0)
        panel.plot(ends, [middle] * 2, color="#111111", lw=2.4, solid_capstyle="butt", label=label)
        label = "_again"
