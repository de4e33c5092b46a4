"use strict";

/* How the race stands: the chart, the standing, the verdict, the table, and what is announced. */
const Outcome = (() => {
  const byId = (id) => document.getElementById(id);
  const ANNOUNCE_EVERY_MS = 2000;
  // Lines that grow a little at a time need fewer pictures than probes that appear.
  const CHART_EVERY_MS = 250;
  let drawnChart = { signature: "", at: 0 };

  /**
   * view: film, entries (all runs), looks (those that are shown, at the minute), minute, isOver,
   * isMoving (the film plays), isRevealed, colourOf (searcher), theme.
   */
  function draw(view) {
    const groups = Film.searchers(view.film).map((name) => ({
      name,
      entries: view.entries.filter(({ run }) => run.searcher === name),
      colour: view.colourOf(name),
    }));
    drawChart(view, groups);
    drawStanding(view, groups);
    drawVerdict(view);
    drawTable(view);
    announceNews(view);
  }

  function drawChart({ film, entries, minute, isMoving, isRevealed, theme }, groups) {
    const top = isRevealed ? film.landscape?.optimum?.value ?? null : null;
    const known = entries.map(({ run, line, trials }) => [run.searcher, line.length, trials.length]);
    const signature = JSON.stringify([minute, known, top, theme.name, film.title, film.race]);
    const isSoon = performance.now() - drawnChart.at < CHART_EVERY_MS;
    if (signature === drawnChart.signature || (isMoving && isSoon)) return;
    drawnChart = { signature, at: performance.now() };
    const { data, layout } = Figures.chart({ film, groups, minute, top, theme });
    Plotly.react(byId("best-chart"), data, layout, Figures.CONFIG);
  }

  function drawStanding({ minute, film }, groups) {
    const isMedian = Film.seeds(film).length > 1;
    byId("standing-title").textContent = isMedian ? "Median over the seeds" : "Standing";
    byId("standing").replaceChildren(...groups.map((group) => {
      const scores = group.entries.map(({ line }) => Film.valueAt(line, minute)).filter((s) => s !== null);
      const item = document.createElement("li");
      item.style.setProperty("--searcher", group.colour);
      item.append(
        span("key", ""),
        span("name", group.name),
        // A median over the seeds that have begun would be another quantity than the chart's.
        span("score", scores.length === group.entries.length
          ? Film.toldText(film, Film.quantile(scores, 0.5))
          : `${scores.length} of ${group.entries.length} begun`),
      );
      return item;
    }));
  }

  function span(className, text) {
    const element = document.createElement("span");
    element.className = className;
    element.textContent = text;
    return element;
  }

  function drawVerdict({ film, looks, isOver }) {
    const verdict = isOver ? film.verdict : { text: pendingText(film, looks), pairs: [] };
    const headline = verdict?.headline ?? verdict?.text ?? "";
    setText(byId("verdict"), headline);
    byId("verdict").classList.toggle("pending", !isOver);
    list("verdict-pairs", (verdict?.pairs ?? []).filter(({ text }) => text !== headline));
    list("standings", verdict?.standings ?? []);
    const caveat = verdict?.caveat ? `, ${verdict.caveat}` : "";
    setText(byId("measure"), verdict?.measure ? `Compared by ${verdict.measure}${caveat}.` : "");
  }

  function pendingText(film, looks) {
    if (!film.is_by_hand) return "The race is still running.";
    const waiting = looks.flatMap(({ probes }) => probes).filter((probe) => probe.state === "RUNNING");
    const text = Film.plural(waiting.length, "experiment");
    return `Waiting for the results of ${text}. What is told appears here.`;
  }

  function list(id, lines) {
    byId(id).replaceChildren(...lines.map((line) => {
      const item = document.createElement("li");
      item.className = line.resolved ? "resolved" : "unresolved";
      item.textContent = line.text;
      return item;
    }));
  }

  function drawTable({ film, looks, minute }) {
    setText(byId("facts-caption"), Film.summary(film, looks, minute));
    byId("facts").tBodies[0].replaceChildren(...looks.map((look) => row(film, look)));
  }

  function row(film, { run, probes, incumbent, spent, isOver }) {
    const element = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = run.searcher;
    element.append(name);
    const cells = [
      probes.length,
      Film.toldText(film, incumbent?.score ?? null),
      incumbent === null ? "—" : Film.configText(film.knobs, incumbent.trial.config),
      Film.amount(film, spent.total),
      isOver ? finalText(run, film.landscape, incumbent) : "—",
    ];
    for (const text of cells) element.insertCell().textContent = text;
    return element;
  }

  /** What the winner was worth, and which it is where it is not the one with the best score. */
  function finalText({ test_score: testScore, value, winner }, landscape, incumbent) {
    const known = [];
    if (testScore !== null) known.push(`${Film.scoreText(testScore)} on test`);
    if (value !== null) known.push(`${Film.scoreText(value)} ${landscape?.measure ?? ""}`);
    if (known.length && winner !== null && winner !== incumbent?.trial.number) {
      known.push(`of trial ${winner}, which was chosen`);
    }
    return known.join(", ") || "—";
  }

  // --- what is announced ------------------------------------------------------------------------

  const news = { best: Infinity, isOver: true, text: "", timer: null };

  /** After a jump by hand nothing that was passed over is news. */
  function skipNews() {
    Object.assign(news, { best: Infinity, text: "" });
    setText(byId("status"), "");
  }

  function announceNews({ film, looks, minute, isOver }) {
    const scored = looks.filter(({ incumbent }) => incumbent !== null);
    const [leader] = scored.sort((a, b) => b.incumbent.score - a.incumbent.score);
    const best = leader?.incumbent.score ?? -Infinity;
    // Less than that is not seen in the scores as they are written.
    if (best > news.best + 5e-4) {
      const score = Film.toldText(film, best);
      announce(`New best: ${leader.run.searcher}, ${score} at ${Film.moment(film, minute)}.`);
    }
    if (isOver && !news.isOver) announce("The race is over: all budgets are spent.");
    Object.assign(news, { best, isOver });
  }

  /** Says the latest of what there is to say, with pauses in which it can be read out. */
  function announce(text) {
    news.text = text;
    if (news.timer !== null) return;
    setText(byId("status"), text);
    news.timer = setTimeout(() => {
      news.timer = null;
      if (news.text !== text) announce(news.text);
    }, ANNOUNCE_EVERY_MS);
  }

  /** Writes only what changed, so that nobody's selection or reader is disturbed. */
  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  return { draw, announce, skipNews };
})();
