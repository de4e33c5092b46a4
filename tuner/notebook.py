"""What a notebook shows of a study and of a finished race: plain HTML, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.escape import in_html
from tuner.foreign import open_regular, read_json
from tuner.progress import Line
from tuner.trial import Trial

_LAST = 10  # trials that are listed
_WIDTH, _HEIGHT = 480, 120
_MOST_PICTURE = 20 << 20
_PNG = b"\x89PNG\r\n\x1a\n"


def study_html(
    entry: str, trials: Sequence[Trial], best: Trial | None, minutes: float, line: Line
) -> str:
    """The best trial, how the best score changed with device minutes, and the last trials.

    Args:
        entry: what searched.
        trials: all, with scores as they were told.
        best: of them.
        minutes: that were spent.
        line: minutes and score of each new best.
    """
    title = f"{entry}, {len(trials)} trial{'' if len(trials) == 1 else 's'}, "
    parts = [_element("b", f"{title}{minutes:.3g} device minutes")]
    if best is not None:
        parts.append(_element("p", f"best: {_cell(best.score)} (trial {best.number})"))
        parts.append(_table(["knob", "value"], list(best.config.items())))
    return f"<div>{''.join(parts)}{_line_svg(line, minutes)}{_trials_table(trials[-_LAST:])}</div>"


@dataclass(frozen=True)
class RaceFolder:
    """A finished race in its folder, as `scripts/tune.py` left it; a notebook shows it.

    Args:
        path: the folder, with its `summary.json` and, where there is one, its `race.png`.

    Raises:
        ValueError: where there is no summary, or none that can be read.
    """

    path: str | Path

    def __post_init__(self) -> None:
        self._rows()  # better refused now than when it is shown

    @property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        path = Path(self.path) / "summary.json"
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"{path} is no summary of a race: {str(found)[:40]!r}")
        return found

    def _rows(self) -> list[list[Any]]:
        keys = ("searcher", "seed", "trials", "best_score", "test_score", "minutes_spent")
        try:
            return [[run[key] for key in keys] for run in self.summary["runs"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path} holds no summary of a race: {error}") from error

    def _repr_html_(self) -> str:
        header = ["searcher", "seed", "trials", "best score", "test score", "minutes"]
        parts = [_element("b", str(self.path)), _table(header, self._rows())]
        said = self.summary.get("verdict")
        if isinstance(said, dict):
            parts.append(_element("p", str(said.get("text", ""))))
        return f"<div>{''.join(parts)}{self._picture()}</div>"

    def _picture(self) -> str:
        path = Path(self.path) / "race.png"
        if not path.exists():
            return ""
        with open_regular(path, _MOST_PICTURE) as file:
            data = file.read(_MOST_PICTURE)
        if not data.startswith(_PNG):
            raise ValueError(f"{path} is no picture: it does not begin as a PNG does")
        text = base64.b64encode(data).decode()
        return f'<img alt="the race" style="max-width:100%" src="data:image/png;base64,{text}">'


def _trials_table(trials: Sequence[Trial]) -> str:
    if not trials:
        return ""
    knobs = list(trials[0].config)
    header = ["trial", "state", "score", *knobs, ""]
    rows = (
        [t.number, t.state.name, t.score, *(t.config[name] for name in knobs), t.remark]
        for t in reversed(trials)
    )
    return _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(_element("th", name) for name in header)
    body = "".join(
        f"<tr>{''.join(_element('td', _cell(cell)) for cell in row)}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _element(tag: str, text: str) -> str:
    return f"<{tag}>{in_html(text)}</{tag}>"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line_svg(line: Line, end: float) -> str:
    """A step at each new best score, against device minutes; nothing where there is no score.

    Where trials cost nothing the steps are evenly spaced.
    """
    if not line:
        return ""
    spent = [minutes for minutes, _ in line]
    if not end:
        spent, end = [float(i) for i in range(len(line))], float(len(line))
    scores = [score for _, score in line]
    low, high = min(scores), max(scores)
    span = (high - low) or 1.0
    xs = [_WIDTH * minutes / end for minutes in spent]
    ys = [_HEIGHT - 4 - (_HEIGHT - 8) * (score - low) / span for score in scores]
    steps = [f"M{xs[0]:.1f} {ys[0]:.1f}"]
    steps += [f"H{x:.1f}V{y:.1f}" for x, y in zip(xs[1:], ys[1:], strict=True)]
    words = f"best so far: from {_cell(scores[0])} to {_cell(scores[-1])}"
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img"><title>{in_html(words)}</title>'
        f'<path d="{"".join(steps)}H{_WIDTH}" fill="none" stroke="#0072B2" stroke-width="2"/></svg>'
    )
