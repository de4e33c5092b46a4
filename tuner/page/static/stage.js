"use strict";

/* The row of panels: which there are, and what lies beneath the probes of each. */
const Stage = (() => {
  const byId = (id) => document.getElementById(id);
  const BELIEVER = "bayes";
  const NEXT = { symbol: "triangle-up", size: 13, colour: "#ff4f8b" };
  const NEXT_WITH_EXPLORATION = { ...NEXT, symbol: "triangle-up-open" };

  const BARE = { base: null, marks: [] };
  const PICTURES_MS = 30;

  const panels = new Map();
  const belief = { view: "landscape", exploration: 0 };
  let beliefControls = null;
  let turn = 0;
  let kept = "";

  /**
   * view: film, entries (all runs), looks (those that are shown, at the minute), maps, x and y
   * (names of knobs), card, isRevealed, colourOf (searcher), theme, onChange.
   */
  function draw(view) {
    keepPanels(view);
    const { film, maps, looks, isRevealed } = view;
    const surface = view.y === null ? null : maps.surface(view.x, view.y);
    const isKnown = surface?.z !== undefined;
    const scores = Film.interestingRange(
      isKnown ? surface.z.flat() : Film.lastScores(view.entries), film.least_gap,
    );
    const landscape = isKnown && isRevealed ? landscapeGround(film, surface, scores) : BARE;
    const axes = axesOf(view, scores);
    drawPanels(looks.map((look) => {
      const ground = groundOf(look, view, landscape, scores);
      const { probes, incumbent } = look;
      return { film, look, probes, incumbent, scores, theme: view.theme, ...axes, ...ground };
    }), view.onChange);
    drawScale(scores, film);
    byId("optimum-legend").hidden = landscape.marks.length === 0;
    byId("held").hidden = !isKnown || Object.keys(surface.held).length === 0;
    byId("held").textContent = isKnown ? `others held at ${Film.heldText(surface.held)}` : "";
  }

  /** Draws what there is time for, each panel in its turn, and asks to come back for the rest. */
  function drawPanels(views, askAgain) {
    const deadline = performance.now() + PICTURES_MS;
    const waiting = [...views.slice(turn), ...views.slice(0, turn)].filter((view) => {
      const panel = panels.get(view.look.run.searcher);
      return !panel.update({ ...view, signature: signatureOf(view) }, performance.now() < deadline);
    });
    turn = Math.max(0, views.indexOf(waiting[0]));
    if (waiting.length > 0) askAgain();
  }

  /** Makes the panels anew when there are other searchers than before. */
  function keepPanels({ film, looks, maps, card, colourOf, onChange }) {
    const names = looks.map(({ run }) => run.searcher);
    const hasControls = film.knobs.length > 1 && maps.hasBeliefs && names.includes(BELIEVER);
    const key = JSON.stringify([names, hasControls, film.landscape !== null]);
    if (key !== kept) {
      kept = key;
      for (const panel of panels.values()) panel.remove();
      panels.clear();
      for (const name of names) panels.set(name, new Panels.Panel(name, card));
      byId("panels").replaceChildren(...[...panels.values()].map((panel) => panel.element));
      beliefControls = hasControls ? makeControls(film, onChange) : null;
    }
    for (const [name, panel] of panels) panel.setColour(colourOf(name));
  }

  function makeControls(film, onChange) {
    const change = (choice) => {
      Object.assign(belief, choice);
      onChange();
    };
    return new Panels.BeliefControls(panels.get(BELIEVER), belief, film.landscape !== null, change);
  }

  /** The two knobs, and where a probe stands between them. */
  function axesOf({ film, ...names }, scores) {
    const placeOf = (name) => film.knobs.findIndex((knob) => knob.name === name);
    const [i, j] = [placeOf(names.x), placeOf(names.y)];
    const value = ({ trial }) => trial.config[i];
    if (j >= 0) {
      return { x: film.knobs[i], y: film.knobs[j], place: (probe) => [value(probe), probe.trial.config[j]] };
    }
    // With a single knob the other axis is the score; what has none lies at the bottom.
    const { low, high } = scores;
    const height = ({ score }) => Film.told(film, Math.max(low, score ?? low));
    const [from, to] = film.sign > 0 ? [low, high] : [-high, -low];
    const y = { name: film.score_name, type: "float", log: false, low: from, high: to };
    return { x: film.knobs[i], y, place: (probe) => [value(probe), height(probe)] };
  }

  // --- what lies beneath ------------------------------------------------------------------------

  function groundOf(look, view, landscape, scores) {
    if (look.run.searcher !== BELIEVER || beliefControls === null) return landscape;
    if (belief.view === "landscape") {
      beliefControls.update(belief, null, null, view.film);
      return landscape;
    }
    const lastEnd = Math.max(0, ...look.probes.filter((p) => p.isOver).map((p) => p.trial.ended));
    const answer = view.maps.belief(look.run.id, lastEnd, view.x, view.y);
    const ground = answer?.mean === undefined ? BARE : beliefGround(answer, view, scores);
    beliefControls.update(belief, answer, ground.base, view.film);
    return ground;
  }

  function landscapeGround(film, surface, scores) {
    const { optimum } = film.landscape;
    const isHeldThere = ([name, value]) => optimum.config[name] === value;
    const isOnSlice = optimum && Object.entries(surface.held).every(isHeldThere);
    const place = isOnSlice ? [optimum.config[surface.x], optimum.config[surface.y]] : null;
    const key = `landscape ${surface.x} ${surface.y}`;
    return {
      base: { ...surface, ...scores, colours: Figures.VIRIDIS, key },
      marks: isOnSlice ? [{ place, symbol: "cross-thin", size: 11 }] : [],
    };
  }

  function beliefGround(answer, { x, y }, scores) {
    const { view, exploration } = belief;
    const key = [view, exploration, answer.at, x, y].join(" ");
    const marks = [];
    if (answer.next !== null) marks.push({ place: [answer.next[x], answer.next[y]], ...NEXT });
    const promise = Film.expectedImprovement(answer, exploration);
    if (exploration > 0) {
      const [j, i] = Film.argmax(promise);
      marks.push({ place: [answer.xs[i], answer.ys[j]], ...NEXT_WITH_EXPLORATION });
    }
    const { xs, ys, mean, sd } = answer;
    const shown = {
      mean: { z: mean, ...scores, colours: Figures.VIRIDIS },
      sd: { z: sd, low: least(sd), high: most(sd), colours: Figures.CIVIDIS },
      ei: { z: promise, low: 0, high: most(promise), colours: Figures.CIVIDIS },
    }[view];
    return { base: { xs, ys, key, ...shown }, marks };
  }

  const least = (z) => Math.min(...z.map((row) => Math.min(...row)));
  const most = (z) => Math.max(...z.map((row) => Math.max(...row)));

  /** Changes when, and only when, a panel's picture does. */
  function signatureOf({ film, look, x, y, base, marks, scores, theme, probes, incumbent }) {
    const states = probes.map((probe) => probe.state.slice(0, 4)).join("");
    const newest = probes.at(-1)?.trial.number;
    return JSON.stringify([
      film.title, film.race, look.run.id, look.run.seed, x.name, y.name, base?.key, marks, scores, theme.name,
      states, newest, incumbent?.trial.number, y.name === film.score_name && incumbent?.score,
    ]);
  }

  function drawScale({ low, high, isClipped }, film) {
    const beyond = film.sign > 0 ? "≤ " : "≥ ";
    byId("scale-low").textContent =
      `${film.score_name} ${isClipped ? beyond : ""}${Film.toldText(film, low)}`;
    byId("scale-high").textContent = Film.toldText(film, high);
  }

  return { draw };
})();
