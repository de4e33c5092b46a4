"use strict";

/* What can be said of a race at a minute, from the film alone: no page, no drawing. */
const Film = (() => {
  const SCORELESS = new Set(["INFEASIBLE", "FAILED"]);
  const STATE_WORDS = {
    RUNNING: "training",
    PAUSED: "paused",
    COMPLETED: "trained in full",
    STOPPED: "stopped early",
    INFEASIBLE: "broke off: diverged or out of memory",
    INTERRUPTED: "interrupted",
    FAILED: "failed",
  };
  const BY_HAND_WORDS = {
    RUNNING: "waits for its result",
    COMPLETED: "done",
    INFEASIBLE: "infeasible",
  };

  // --- the film ---------------------------------------------------------------------------------

  /** Each run with its trials in order and its best-so-far line. */
  function open(film) {
    const trialsOf = new Map(film.runs.map((run) => [run.id, []]));
    for (const [runId, trial] of film.trials) trialsOf.get(runId)?.push(trial);
    return film.runs.map((run) => {
      const trials = trialsOf.get(run.id);
      trials.sort((a, b) => a.started - b.started || a.number - b.number);
      // Nothing more comes of a run that has spent its budget, or of a race that was given up.
      const isClosed = run.finished || film.mode === "finished";
      return { run, trials, isClosed, line: bestLine(trials) };
    });
  }

  /** Puts newer runs and trials in the place of older ones, or behind them. */
  function upsert(film, more) {
    for (const run of more.runs) {
      put(film.runs, run, (other) => other.id === run.id);
    }
    for (const entry of more.trials) {
      const [runId, trial] = entry;
      put(film.trials, entry, ([id, other]) => id === runId && other.number === trial.number);
    }
  }

  function put(list, item, isSame) {
    const place = list.findIndex(isSame);
    if (place < 0) list.push(item);
    else list[place] = item;
  }

  const unique = (values) => [...new Set(values)];
  const searchers = (film) => unique(film.runs.map((run) => run.searcher));
  const seeds = (film) => unique(film.runs.map((run) => run.seed)).sort((a, b) => a - b);
  const isComplete = (film) =>
    film.mode === "finished" || (film.runs.length > 0 && film.runs.every((run) => run.finished));
  /** In minutes, or in experiments; never 0, so that there is an axis before anything is spent. */
  const length = (film) => Math.max(film.budget, ...film.runs.map((run) => run.spent)) || 1;

  /** The minute up to which the film may be played. */
  function horizon(film) {
    if (isComplete(film)) return length(film);
    if (film.runs.length === 0) return 0;
    // A live race is watched at its newest; a demo is played, and must not run ahead of any run.
    if (film.mode === "live") return Math.max(...film.runs.map((run) => run.spent));
    return Math.min(...film.runs.filter((run) => !run.finished).map((run) => run.spent));
  }

  /** The next minute at which a trial starts or ends; the horizon where there is none. */
  function nextEvent(entries, minute, last) {
    let next = last;  // in a loop: there may be more trials than a call takes arguments
    for (const { trials } of entries) {
      for (const { started, ended } of trials) {
        for (const at of [started, ended]) {
          if (at !== null && at > minute + 1e-9 && at < next) next = at;
        }
      }
    }
    return next;
  }

  // --- a run at a minute ------------------------------------------------------------------------

  /** What a run has tried, found and spent by then. */
  function lookAt(entry, minute) {
    const { run, trials } = entry;
    const isOver = entry.isClosed && minute >= run.spent;
    const probes = trials.filter((t) => t.started <= minute).map((t) => probeAt(t, isOver, minute));
    let incumbent = null;
    for (const probe of probes) {
      if (probe.score !== null && (incumbent === null || probe.score > incumbent.score)) {
        incumbent = probe;
      }
    }
    return { run, probes, incumbent, isOver, spent: spentAt(run, minute) };
  }

  /** A trial as it was then; what is open when its run is over stays as it was left. */
  function probeAt(trial, isRunOver, minute) {
    const isOver = trial.ended !== null && trial.ended <= minute;
    const state = isOver || isRunOver ? trial.state : isPaused(trial, minute) ? "PAUSED" : "RUNNING";
    const seen = trial.curve.filter(([, score, at]) => at <= minute && Number.isFinite(score));
    const last = seen.at(-1);
    const score = last === undefined || SCORELESS.has(state) ? null : last[1];
    return { trial, state, isOver, seen, score, epoch: last ? last[0] : 0 };
  }

  /** Whether an open trial waits: nothing comes of it for more than twice as long as usual. */
  function isPaused({ curve, started, state }, minute) {
    const times = [started, ...curve.map(([, , at]) => at)];
    const next = times.findIndex((at) => at > minute);
    if (next === -1) return state === "PAUSED";
    if (next === 1) return false;
    const gaps = times.slice(1).map((at, i) => at - times[i]);
    const epoch = quantile(gaps, 0.25);
    // Its last epoch in good time is training again.
    return gaps[next - 1] > 2 * epoch && minute < times[next] - epoch;
  }

  function spentAt(run, minute) {
    const total = Math.min(minute, run.spent);
    const { train, evaluate, warm_up: warmUp, checkpoint, search, lost } = run.ledger;
    const training = train + evaluate + warmUp + checkpoint;
    const all = training + search + lost;
    const share = all > 0 ? total / all : 0;
    return { total, training: training * share, searching: search * share, lost: lost * share };
  }

  /** The best latest score after each change, as [minute, score]; null where there is none. */
  function bestLine(trials) {
    const events = trials.flatMap(scoreEvents).sort((a, b) => a.minute - b.minute);
    const latest = new Map();
    const line = [];
    let holder = null;  // of the best; all are looked at only where it gets worse
    let best = null;
    for (const { minute, number, score } of events) {
      if (score === null) latest.delete(number);
      else latest.set(number, score);
      if (score !== null && (best === null || score >= best)) {
        [holder, best] = [number, score];
      } else if (number === holder) {
        [holder, best] = [null, null];
        for (const [other, value] of latest) {
          if (best === null || value > best) [holder, best] = [other, value];
        }
      }
      if (line.length === 0 || line.at(-1)[1] !== best) line.push([minute, best]);
    }
    return line;
  }

  function scoreEvents({ number, curve, state, ended }) {
    const events = curve
      .filter(([, score]) => Number.isFinite(score))
      .map(([, score, minute]) => ({ minute, number, score }));
    if (SCORELESS.has(state) && ended !== null) events.push({ minute: ended, number, score: null });
    return events;
  }

  function valueAt(line, minute) {
    let value = null;
    for (const [at, score] of line) {
      if (at > minute) break;
      value = score;
    }
    return value;
  }

  /** The line as far as that minute, drawn on to it. */
  function cut(line, minute) {
    const known = line.filter(([at]) => at <= minute);
    if (known.length > 0 && known.at(-1)[0] < minute) known.push([minute, known.at(-1)[1]]);
    return known;
  }

  /** Median and quartiles over the runs of one searcher, from where each of them has a score. */
  function spread(entries, minute) {
    const minutes = unique(entries.flatMap(({ line }) => line.map(([at]) => at)).concat(minute));
    const rows = [];
    for (const at of minutes.filter((m) => m <= minute).sort((a, b) => a - b)) {
      const values = entries.map(({ line }) => valueAt(line, at));
      if (values.includes(null)) continue;
      rows.push([at, quantile(values, 0.25), quantile(values, 0.5), quantile(values, 0.75)]);
    }
    return rows;
  }

  // --- numbers ----------------------------------------------------------------------------------

  function quantile(values, q) {
    const sorted = [...values].sort((a, b) => a - b);
    const place = q * (sorted.length - 1);
    const below = Math.floor(place);
    const above = Math.ceil(place);
    return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
  }

  /**
   * From where to where scores are worth telling apart: what failed to learn is all one colour, and
   * so are scores that differ by less than `least`.
   */
  function interestingRange(scores, least) {
    const known = scores.filter((score) => Number.isFinite(score));
    if (known.length === 0) return { low: 0, high: 1, isClipped: false };
    const high = known.reduce((a, b) => Math.max(a, b));
    const lowest = known.reduce((a, b) => Math.min(a, b));
    const low = Math.min(quantile(known, 0.2), high - (least || 1e-6 * Math.abs(high) || 1));
    return { low, high, isClipped: lowest < low };
  }

  const lastScores = (entries) =>
    entries.flatMap((entry) => lookAt(entry, Infinity).probes.map((probe) => probe.score));

  /** Expected improvement over the incumbent, with exploration `xi`, wherever there is a belief. */
  function expectedImprovement(belief, xi) {
    return belief.mean.map((row, j) =>
      row.map((mean, i) => improvement(mean - belief.incumbent_mean - xi, belief.gap_sd[j][i])),
    );
  }

  function improvement(gap, sd) {
    if (!(sd > 1e-12)) return Math.max(gap, 0);
    const u = gap / sd;
    const density = Math.exp(-0.5 * u * u) / Math.sqrt(2 * Math.PI);
    // Far below the incumbent the two terms cancel; their difference tends to density / u².
    if (u < -10) return (sd * density) / (u * u);
    return sd * (density + u * (1 - 0.5 * erfc(u / Math.SQRT2)));
  }

  /** Chebyshev fit with a relative error under 1.2e-7 everywhere (Numerical Recipes, erfcc). */
  function erfc(x) {
    const t = 1 / (1 + 0.5 * Math.abs(x));
    const terms = [
      -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398,
      1.48851587, -0.82215223, 0.17087277,
    ];
    const tail = t * Math.exp(-x * x + terms.reduceRight((sum, term) => sum * t + term, 0));
    return x >= 0 ? tail : 2 - tail;
  }

  /** Row and column of the largest value. */
  function argmax(z) {
    let place = [0, 0];
    z.forEach((row, j) => row.forEach((value, i) => {
      if (value > z[place[0]][place[1]]) place = [j, i];
    }));
    return place;
  }

  // --- words ------------------------------------------------------------------------------------

  /** A score as the user knows it: within the film a higher one is always better. */
  const told = (film, score) => (score === null ? null : film.sign * score);

  function scoreText(score) {
    if (score === null) return "—";
    return score === 0 || Math.abs(score) >= 0.01 ? score.toFixed(3) : score.toPrecision(3);
  }

  const toldText = (film, score) => scoreText(told(film, score));
  const stateText = (film, state) =>
    (film.is_by_hand ? BY_HAND_WORDS[state] : undefined) ?? STATE_WORDS[state];

  /** So many minutes or experiments; and the moment at which so many are spent. */
  const amount = (film, spent) => (film.is_counted ? String(Math.floor(spent + 1e-9)) : spent.toFixed(1));
  const moment = (film, spent) => `${film.is_counted ? "experiment" : "minute"} ${amount(film, spent)}`;
  const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
  /** A duration without needless decimals: 60, 0.5, 12.25. */
  const plain = (number) => String(Number(number.toFixed(2)));

  function valueText(value) {
    if (value === null) return "none";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    if (Math.abs(value) < 1e-3) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  }

  const configText = (knobs, config) =>
    knobs.map((knob, i) => `${knob.name} ${valueText(config[i])}`).join(", ");

  const heldText = (held) =>
    Object.entries(held).map(([name, value]) => `${name} = ${valueText(value)}`).join(", ");

  /** The picture in one sentence. */
  function summary(film, looks, minute) {
    const scored = looks.filter((look) => look.incumbent !== null);
    const when = `At ${moment(film, minute)} of ${plain(length(film))}`;
    if (scored.length === 0) return `${when} no searcher has a score yet.`;
    scored.sort((a, b) => b.incumbent.score - a.incumbent.score);
    const [leader, ...others] = scored.map(
      ({ run, incumbent }) => `${run.searcher} (${toldText(film, incumbent.score)})`,
    );
    const behind = others.length > 0 ? `, before ${others.join(", ")}` : "";
    return `${when} the best ${film.score_name} is that of ${leader}${behind}.`;
  }

  return {
    open, upsert, searchers, seeds, isComplete, length, horizon, nextEvent, lookAt,
    cut, valueAt, spread, quantile, interestingRange, lastScores, expectedImprovement, argmax,
    told, scoreText, toldText, stateText, amount, moment, valueText, configText, heldText, plural,
    plain, summary,
  };
})();
