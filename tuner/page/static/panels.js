"use strict";

/* The panels, one a searcher, and the card that tells about one probe. */
const Panels = (() => {
  const METHODS = {
    grid: "Covers the map with a fixed pattern; no result changes where it looks.",
    random: "Throws darts; it learns nothing from where they land.",
    bayes: "Guesses the map from every probe so far, and looks where a better one may hide.",
  };
  const MEANINGS = {
    mean: "What Bayes expects each setting to score, from the probes alone.",
    sd: "Where Bayes is unsure: bright where it has not looked, dark around its probes.",
    ei: "How much each setting promises to beat the best so far: high where a good score is expected, "
      + "or where nobody knows. The next probe goes to the brightest spot.",
  };

  const fromTemplate = (id) => document.getElementById(id).content.cloneNode(true).firstElementChild;

  /** A searcher's panel: shows what `update` is given, and reports what is done to its probes. */
  class Panel {
    constructor(searcher, card) {
      this.element = fromTemplate("panel-template");
      this.find = (selector) => this.element.querySelector(selector);
      this.plot = this.find(".plot");
      this.focus = this.find(".field-of-view");
      this.bar = this.find(".bar");
      this.halo = this.find(".halo");
      this.card = card;
      this.element.dataset.searcher = searcher;
      this.bar.dataset.searcher = searcher;
      this.bar.setAttribute("aria-label", `${searcher}: budget spent`);
      this.find("h3").textContent = searcher;
      this.find(".method").textContent = METHODS[searcher] ?? "";
      this.listen();
    }

    setColour(colour) {
      this.element.style.setProperty("--searcher", colour);
    }

    /**
     * Brings words and budget up to date, and the picture where it changed and there is time for it.
     * False where the picture has fallen behind.
     */
    update(view, hasTime) {
      this.view = view;
      this.updateWords(view);
      this.updateBar(view);
      if (view.signature === this.signature) return true;
      if (!hasTime) return false;
      this.signature = view.signature;
      const { data, layout } = Figures.panel(view);
      Plotly.react(this.plot, data, layout, Figures.CONFIG);
      if (!this.isWired) this.wire();
      this.card.refresh(this);
      return true;
    }

    updateWords({ look, probes, film }) {
      const { incumbent } = look;
      const count = Film.plural(probes.length, "trial");
      this.element.dataset.trials = probes.length;
      this.find(".count").textContent = count;
      this.find(".best").textContent = incumbent && `best ${Film.toldText(film, incumbent.score)}`;
      this.focus.setAttribute(
        "aria-label",
        `${look.run.searcher}: ${count}. Left and right arrow keys go through them.`,
      );
    }

    updateBar({ look, film }) {
      const { total, training, searching, lost } = look.spent;
      const limit = film.budget > 0 ? ` of ${Film.plain(film.budget)}` : "";
      const spent = `${Film.amount(film, total)}${limit} ${film.unit}`;
      this.bar.hidden = film.budget === 0;
      const percent = Math.min(100, (100 * total) / film.budget);
      this.find(".spent").textContent = spent;
      this.bar.setAttribute("aria-valuenow", percent.toFixed(1));
      this.bar.setAttribute(
        "aria-valuetext",
        `${spent}: ${training.toFixed(1)} training, ${searching.toFixed(1)} searching, ${lost.toFixed(1)} lost`,
      );
      const parts = { train: training, search: searching, lost };
      for (const [name, minutes] of Object.entries(parts)) {
        this.find(`.bar .${name}`).style.width = `${(100 * minutes) / Math.max(total, film.budget)}%`;
      }
    }

    /** Plotly's events exist once something has been drawn. */
    wire() {
      this.isWired = true;
      const probeOf = (event) =>
        this.view.probes.find((probe) => probe.trial.number === event.points[0].customdata);
      this.plot.on("plotly_hover", (event) => this.show(probeOf(event), false));
      this.plot.on("plotly_unhover", () => this.card.leave());
      this.plot.on("plotly_click", (event) => this.show(probeOf(event), true));
    }

    listen() {
      this.focus.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (step === undefined || this.view.probes.length === 0) return;
        event.preventDefault();
        this.show(this.neighbour(step), true);
      });
      this.focus.addEventListener("blur", () => this.card.close());
    }

    /** The probe before or after the one that is shown; the newest where none is. */
    neighbour(step) {
      const { probes } = this.view;
      const at = probes.findIndex((probe) => this.card.isShowing(this, probe.trial.number));
      if (at < 0) return probes.at(-1);
      return probes[Math.min(probes.length - 1, Math.max(0, at + step))];
    }

    show(probe, isPinned) {
      if (probe !== undefined) this.card.show(this, probe, isPinned);
    }

    /** Where a probe is, in pixels of the plot. */
    pixel(probe) {
      return Figures.pixel(this.plot, probe, this.view);
    }

    markProbe(probe) {
      this.halo.hidden = probe === null;
      if (probe === null) return;
      const { left, top } = this.pixel(probe);
      this.halo.style.left = `${left}px`;
      this.halo.style.top = `${top}px`;
    }

    remove() {
      Plotly.purge(this.plot);
      this.element.remove();
    }
  }

  /** The controls that turn the Bayes panel into what Bayes believes. */
  class BeliefControls {
    constructor(panel, choice, hasLandscape, onChange) {
      const element = fromTemplate("belief-template");
      this.find = (selector) => element.querySelector(selector);
      this.slider = this.find("#exploration");
      if (!hasLandscape) this.find("[value=landscape] + span").textContent = "Probes only";
      this.slider.value = choice.exploration;
      for (const radio of element.querySelectorAll("input[name=belief]")) {
        radio.checked = radio.value === choice.view;
        radio.addEventListener("change", () => onChange({ view: radio.value }));
      }
      this.slider.addEventListener("input", () => onChange({ exploration: Number(this.slider.value) }));
      panel.find(".method").replaceWith(element);
    }

    update({ view, exploration }, belief, base, film) {
      this.find(".details").hidden = view === "landscape";
      if (view === "landscape") return;
      this.find(".exploration output").textContent = exploration.toFixed(3);
      this.find(".scale").hidden = base === null;
      this.find(".meaning").textContent = meaning(view, exploration, belief);
      if (base === null) return;
      this.find(".ramp").className = `ramp ${view === "mean" ? "viridis" : "cividis"}`;
      const sign = view === "mean" ? film.sign : 1;
      this.find(".low").textContent = valueLabel(sign * base.low);
      this.find(".high").textContent = valueLabel(sign * base.high);
    }
  }

  function meaning(view, exploration, belief) {
    if (belief === null) return "Asking what Bayes believes…";
    if (belief.mean === undefined) return belief.text;
    const next = belief.next === null ? "" : " ▲ marks the next probe.";
    const moved = exploration > 0 ? " △ is where it would go with this exploration." : "";
    const held = Film.heldText(belief.held);
    const slice = held === "" ? "" : ` Others held at ${held}; the next probe may lie off this slice.`;
    return MEANINGS[view] + next + moved + slice;
  }

  const valueLabel = (value) =>
    value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(1) : value.toFixed(3);

  // --- the card of a probe ----------------------------------------------------------------------

  class ProbeCard {
    constructor(element) {
      this.element = element;
      this.shown = null;
      document.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
      document.addEventListener("pointerdown", (event) => {
        if (!event.target.closest(".plot, .probe-card")) this.close();
      });
      window.addEventListener("resize", () => this.close());
    }

    show(panel, probe, isPinned) {
      // A pinned card stays until it is closed or another probe is chosen.
      if (!isPinned && this.shown?.isPinned) return;
      this.shown?.panel.markProbe(null);
      this.shown = { panel, number: probe.trial.number, isPinned };
      this.element.replaceChildren(...cardContent(panel.view, probe));
      this.element.style.setProperty("--searcher", panel.element.style.getPropertyValue("--searcher"));
      this.element.hidden = false;
      panel.markProbe(probe);
      this.place(panel, probe);
    }

    /** Tells what has become of the probe, where the panel still shows it. */
    refresh(panel) {
      if (this.shown?.panel !== panel) return;
      const { number, isPinned } = this.shown;
      const probe = panel.view.probes.find((other) => other.trial.number === number);
      this.close();
      if (probe !== undefined) this.show(panel, probe, isPinned);
    }

    isShowing(panel, number) {
      return this.shown !== null && this.shown.panel === panel && this.shown.number === number;
    }

    leave() {
      if (this.shown !== null && !this.shown.isPinned) this.close();
    }

    close() {
      this.shown?.panel.markProbe(null);
      this.shown = null;
      this.element.hidden = true;
    }

    /** Beside the probe, where there is room for it. */
    place(panel, probe) {
      const plot = panel.plot.getBoundingClientRect();
      const { left, top } = panel.pixel(probe);
      const { offsetWidth: width, offsetHeight: height } = this.element;
      const room = document.documentElement.clientWidth - width - 8;
      const right = plot.left + left + 18;
      const x = right <= room ? right : plot.left + left - width - 18;
      const y = plot.top + top - height / 2;
      const within = (value, most) => Math.max(8, Math.min(value, most));
      this.element.style.left = `${window.scrollX + within(x, room)}px`;
      this.element.style.top = `${window.scrollY + within(y, window.innerHeight - height - 8)}px`;
    }
  }

  function cardContent({ film, look }, probe) {
    const { trial, state, score, epoch, seen } = probe;
    const title = make("p", `${look.run.searcher}, trial ${trial.number}`, "title");
    const remark = [probe.isOver ? trial.reason : "", trial.note].filter(Boolean).join("; ");
    const words = make("p", Film.stateText(film, state) + (remark ? ` (${remark})` : ""), "state");
    const minutes = probe.isOver ? trial.minutes : (seen.at(-1)?.[2] ?? trial.started) - trial.started;
    const facts = [
      ...film.knobs.map((knob, i) => [knob.name, Film.valueText(trial.config[i])]),
      [film.score_name, Film.toldText(film, score)],
      ...(film.epochs === null ? [] : [["epochs", `${epoch} of ${film.epochs}`]]),
      ...(film.is_counted ? [] : [["minutes", minutes.toFixed(2)]]),
    ];
    const list = make("dl");
    for (const [name, value] of facts) list.append(make("dt", name), make("dd", value));
    return [title, words, list, ...(seen.length > 1 ? [curveDrawing(seen, film)] : [])];
  }

  function make(tag, text = "", className = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  /** The learning curve, score against epoch. */
  function curveDrawing(seen, film) {
    const [width, height, left, bottom, top] = [220, 84, 34, 16, 8];
    const scores = seen.map(([, score]) => score);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    const x = (epoch) => left + ((width - left - 6) * (epoch - 1)) / Math.max(1, film.epochs - 1);
    const y = (score) => top + (height - top - bottom) * (1 - (score - low) / Math.max(1e-9, high - low));
    const points = seen.map(([epoch, score]) => `${x(epoch).toFixed(1)},${y(score).toFixed(1)}`);
    const text = (score) => Film.told(film, score).toFixed(2);
    const label = `learning curve, from ${Film.toldText(film, scores[0])} to ${Film.toldText(film, scores.at(-1))}`;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    svg.append(
      draw("path", { d: `M${left} ${top}V${height - bottom}H${width - 6}`, class: "axes" }),
      draw("polyline", { points: points.join(" "), class: "curve" }),
      draw("text", { x: left - 4, y: y(high) + 4, "text-anchor": "end" }, text(high)),
      draw("text", { x: left - 4, y: y(low) + 1, "text-anchor": "end" }, text(low)),
      draw("text", { x: width - 6, y: height - 4, "text-anchor": "end" }, `epoch ${film.epochs}`),
    );
    return svg;
  }

  function draw(tag, attributes, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  }

  return { Panel, BeliefControls, ProbeCard };
})();
