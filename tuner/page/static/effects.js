"use strict";

/* Which knobs mattered in a finished race, and how the scores went with each; a report has it. */
const Effects = (() => {
  const byId = (id) => document.getElementById(id);
  const MOST_POINTS = 1500;
  const SCORELESS = new Set(["INFEASIBLE", "FAILED"]);
  let drawn = "";

  /** view: film, entries (all runs), isOver, colourOf (searcher), theme. */
  function draw({ film, entries, isOver, colourOf, theme }) {
    const { effects } = film;
    byId("effects").hidden = !effects;
    if (!effects) return;
    byId("effects-text").textContent = isOver ? effects.text : "The race is still running.";
    byId("effects-text").classList.toggle("pending", !isOver);
    byId("effects-found").hidden = !isOver;
    const signature = JSON.stringify([film.title, theme.name]);
    if (!isOver || signature === drawn) return;
    drawn = signature;
    const names = Film.searchers(film);
    const all = entries.flatMap(({ run, trials }) =>
      trials.flatMap((trial) => pointOf(run.searcher, trial, effects.epoch)));
    const step = Math.ceil(all.length / MOST_POINTS);
    const points = all.filter((_, i) => i % step === 0);
    const scores = all.map(({ score }) => score);
    const low = effects.floor ?? Film.interestingRange(scores).low;
    const high = scores.reduce((a, b) => Math.max(a, b), low);
    const groups = names.map((name) => ({
      name, colour: colourOf(name), points: points.filter(({ searcher }) => searcher === name),
    }));
    byId("effects-keys").replaceChildren(...groups.flatMap(key));
    byId("effects-note").textContent = noteOf(effects, step, scores.some((s) => s < low) ? low : null);
    const panels = film.knobs.map((knob) => panelOf(knob, effects));
    byId("effects-knobs").replaceChildren(...panels);
    film.knobs.forEach((knob, index) => {
      const view = { knob, index, groups, cells: effects.cells[knob.name], low, high, theme };
      const { data, layout } = Figures.effect({ ...view, scoreName: film.score_name });
      Plotly.newPlot(panels[index].querySelector(".effect-plot"), data, layout, Figures.CONFIG);
    });
  }

  /** A trial with the score by which it is compared, or its last; none where it has no score. */
  function pointOf(searcher, { number, config, state, curve }, epoch) {
    if (SCORELESS.has(state) || curve.length === 0) return [];
    const compared = curve.find(([at]) => at === epoch);
    const isShort = epoch > 0 && !compared;
    return [{ searcher, number, config, isShort, score: (compared ?? curve.at(-1))[1] }];
  }

  function panelOf(knob, { shares }) {
    const panel = byId("effect-template").content.firstElementChild.cloneNode(true);
    panel.querySelector("h3").textContent = knob.name;
    const percent = shares === null ? null : 100 * shares[knob.name];
    panel.querySelector(".share").textContent = percent === null ? "" : `${percent.toFixed(0)} %`;
    panel.querySelector(".share-bar").hidden = percent === null;
    panel.querySelector(".share-bar span").style.width = `${percent}%`;
    return panel;
  }

  function key({ name, colour }) {
    const item = document.createElement("span");
    item.style.setProperty("--searcher", colour);
    item.textContent = name;
    return [item, " "];
  }

  function noteOf({ epoch }, step, low) {
    const compared = epoch > 0 ? `Scores after epoch ${epoch}, hollow where a trial trained for less. ` : "";
    const edge = low === null ? "" : `Those below ${Film.scoreText(low)} are drawn there. `;
    const part = step > 1 ? `One trial in ${step} is drawn. ` : "";
    return `${compared}${edge}${part}Lines and bands: median and quartiles of a cell, in which the ` +
      "other knobs are wherever the searchers put them.";
  }

  return { draw };
})();
