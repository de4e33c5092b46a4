"""BOHB's model: the ratio of two kernel densities (Falkner, Klein and Hutter, 2018, section 3.2).

Notation: n data, d knobs, m points. Where the paper leaves a choice open, the defaults of its
authors' HpBandSter are taken. Scores are higher when better, so that best is highest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr, ndtri

from tuner.history import HistoryView
from tuner.searchers.base import config_key, generator, tried
from tuner.searchers.random import draw_new
from tuner.space import Choice, Config, SearchSpace
from tuner.trial import TrialState

RANDOM_FRACTION = 1 / 3
TOP = 0.15  # q: the share of the data that is good
SAMPLES = 64  # N_s: drawn from l', of which the best by l / g is proposed
WIDENING = 3.0  # b_w: the bandwidths of l' over those of l
NARROWEST = 1e-3  # of any bandwidth
_LOG_FLOOR = float(np.log(1e-32))  # HpBandSter's: a density below it counts as this


class BohbSearcher:
    """Draws where good configurations are dense and bad ones are not; a third at random.

    - The data are the scores at one epoch, the largest that d + 3 trials have reached. Every epoch
      a trial went through counts and not only the one it was stopped at.
    - Infeasible trials are bad data at whatever epoch that is, as HpBandSter's crashed ones are;
      they do not make an epoch reached, since they say nothing of what is good there.
    - Points are judged as the legal configurations that they stand for.
    - In a finite space only untried configurations are proposed.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed
        self._options = np.array(
            [len(dom.options) if isinstance(dom, Choice) else 0 for dom in space.values()]
        )
        self.fallback = ""

    def propose(self, history: HistoryView) -> Config:
        """The best by l / g of a sample, or a random draw."""
        self.fallback = ""
        source = generator(self._seed, "bohb", history)
        densities = self.densities(history)
        if densities is None or source.random() < RANDOM_FRACTION:
            return draw_new(self._space, self._seed, "bohb-random", history)
        good, bad = densities
        drawn = self._decode(good.sample(SAMPLES, WIDENING, source))
        if self._space.cardinality is not None:
            seen = tried(self._space, history)
            drawn = [config for config in drawn if config_key(self._space, config) not in seen]
            if not drawn:
                self.fallback = "the model drew only what has been tried: random"
                return draw_new(self._space, self._seed, "bohb-rest", history)
        points = self._encode(drawn)  # m x d
        l = np.maximum(good.log_pdf(points), _LOG_FLOOR)  # noqa: E741 - the paper's names
        g = np.maximum(bad.log_pdf(points), _LOG_FLOOR)
        return drawn[int(np.argmax(l - g))]

    def densities(self, history: HistoryView) -> tuple[Density, Density] | None:
        """The densities l of the good and g of the bad data; None while there are too few."""
        least = len(self._space) + 1  # N_min
        epoch = model_epoch(history, least + 2)
        if epoch is None:
            return None
        infeasible = {t.number for t in history if t.state is TrialState.INFEASIBLE}
        scores = {n: s for n, s in history.scores_at(epoch).items() if n not in infeasible}
        ranked = sorted(scores, key=lambda n: (-scores[n], n))
        data = self._encode([history[n].config for n in (*ranked, *sorted(infeasible))])  # n x d
        n_good, n_bad = split_sizes(len(data), least)
        n_good = min(n_good, len(ranked))  # an infeasible one is never good
        return self._fit(data[:n_good]), self._fit(data[-n_bad:])

    def _fit(self, data: NDArray[np.float64]) -> Density:
        return Density(data, bandwidths(data, self._options), self._options)

    def _encode(self, configs: list[Config]) -> NDArray[np.float64]:
        """Configurations in the model's coordinates, `n x d`: an option is its index."""
        units = self._space.to_unit(configs)
        return np.where(self._options > 0, np.floor(units * self._options), units)

    def _decode(self, points: NDArray[np.float64]) -> list[Config]:
        middles = (points + 0.5) / np.maximum(self._options, 1)
        return list(self._space.from_unit(np.where(self._options > 0, middles, points)))


def model_epoch(history: HistoryView, enough: int) -> int | None:
    """The largest epoch that `enough` trials have a score at; None where there is none."""
    reached = sorted(
        (t.epoch for t in history if t.state is not TrialState.INFEASIBLE), reverse=True
    )
    return (reached[enough - 1] or None) if len(reached) >= enough else None


def split_sizes(n: int, least: int) -> tuple[int, int]:
    """How many of n data, at least `least` + 2, are good and how many are bad.

    Equation 3: N_l = max(N_min, q N), N_g = max(N_min, N - N_l). The best of few data may be among
    the worst of them as well.
    """
    n_good = max(least, int(TOP * n))
    return n_good, max(least, n - n_good)


def bandwidths(data: NDArray[np.float64], options: NDArray[np.int_]) -> NDArray[np.float64]:
    """The normal-reference rule, 1.06 sigma n^(-1/(4 + d)), as statsmodels has it: d values.

    The sigma of a choice knob is sqrt((1 - sum_k p_k^2) / 2) with p_k the options' shares. For two
    options it is that of their indices; for more the indices have no spread that means anything,
    and this takes any two different options to be a distance of 1 apart.
    """
    n, d = data.shape
    sigma = data.std(axis=0)
    for i in np.flatnonzero(options):
        shares = np.bincount(data[:, i].astype(int), minlength=options[i]) / n
        sigma[i] = np.sqrt((1 - (shares**2).sum()) / 2)
    widths: NDArray[np.float64] = np.maximum(1.06 * sigma * n ** (-1 / (4 + d)), NARROWEST)
    return widths


@dataclass(frozen=True)
class Density:
    """A kernel density estimate with product kernels.

    Attributes:
        data: n x d; numbers in [0, 1], choice knobs as indices of options.
        bandwidth: of each knob, d.
        options: how many options each knob has, d; 0 for a number.
    """

    data: NDArray[np.float64]
    bandwidth: NDArray[np.float64]
    options: NDArray[np.int_]

    def log_pdf(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The logarithm of the density at `m x d` points, m values."""
        total = np.zeros((len(points), len(self.data)))  # m x n
        for i, (h, options) in enumerate(zip(self.bandwidth, self.options, strict=True)):
            gap = points[:, i, None] - self.data[None, :, i]  # m x n
            if options:
                miss = _miss(h, options)
                other = np.log(miss / (options - 1)) if options > 1 else 0.0
                # Aitchison and Aitken (1976): 1 - h at the datum, h / (c - 1) elsewhere.
                total += np.where(gap == 0, np.log1p(-miss), other)
            else:
                total += -0.5 * (gap / h) ** 2 - np.log(h * np.sqrt(2 * np.pi))
        log_pdf: NDArray[np.float64] = logsumexp(total, axis=1) - np.log(len(self.data))
        return log_pdf

    def sample(self, m: int, widening: float, source: np.random.Generator) -> NDArray[np.float64]:
        """`m x d` points from this density with all bandwidths widened, cut off outside [0, 1]."""
        points = self.data[source.integers(len(self.data), size=m)]  # m x d
        for i, (h, options) in enumerate(zip(self.bandwidth * widening, self.options, strict=True)):
            centre, draw = points[:, i], source.random(m)
            if options:
                shift = source.integers(1, max(options, 2), size=m)
                moved = (centre + shift) % options
                points[:, i] = np.where(draw < _miss(h, options), moved, centre)
            else:
                low, high = ndtr(-centre / h), ndtr((1 - centre) / h)
                points[:, i] = np.clip(centre + h * ndtri(low + draw * (high - low)), 0.0, 1.0)
        return points


def _miss(h: float, options: int) -> float:
    """A categorical kernel's mass off its datum: at most (c - 1) / c, where it is uniform."""
    return float(min(h, (options - 1) / options))
