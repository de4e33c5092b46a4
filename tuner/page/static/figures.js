"use strict";

/* Plotly's data and layouts for the panels and the chart. Knobs are placed on linear axes in their
   own coordinates (log10, the index of a choice), so that all kinds of knobs are drawn alike. */
const Figures = (() => {
  const CONFIG = { displayModeBar: false, responsive: true };
  const MARGIN = { l: 58, r: 14, t: 10, b: 46 };
  const OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000"];
  const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
  const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#fee838"];
  const SYMBOLS = {
    RUNNING: "circle-open",
    PAUSED: "square-open",
    STOPPED: "diamond-open",
    INFEASIBLE: "x-thin",
    FAILED: "x-thin",
  };
  // On a heatmap, whose colours are the same in both themes, probes are white with a dark edge.
  const ON_HEATMAP = { fill: "#ffffff", edge: "#10131a" };

  const scaleOf = (colours) => colours.map((colour, i) => [i / (colours.length - 1), colour]);

  /** Text for Plotly, which would read tags in it. */
  const escape = (text) =>
    String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  const colourOf = (place, isDark) => {
    const colour = OKABE_ITO[place % OKABE_ITO.length];
    return isDark && colour === "#000000" ? "#f2f2f2" : colour;
  };

  // --- axes -------------------------------------------------------------------------------------

  /** Where a value of a knob stands on its axis. */
  function position(knob, value) {
    const index = knob.type === "choice" ? knob.options.indexOf(value) : -1;
    if (index >= 0) return index;
    if (value === null) return null; // a conditional knob that is not there
    return knob.log ? Math.log10(value) : value;
  }

  /** Where a probe stands: probes of the same choice are moved apart, or they would hide another. */
  function spot(knob, value, number, salt) {
    const isDiscrete = knob.type === "choice" || (knob.type === "int" && !knob.log);
    const fraction = ((number + 1) * salt) % 1;
    const place = position(knob, value);
    return place === null ? null : place + (isDiscrete ? 0.56 * (fraction - 0.5) : 0);
  }

  /** Both coordinates of a probe, which is placed by its knobs. */
  function spotOf(probe, { x, y, place }) {
    const [xValue, yValue] = place(probe);
    const { number } = probe.trial;
    return [spot(x, xValue, number, 0.7549), spot(y, yValue, number, 0.5698)];
  }

  function rangeOf(knob) {
    if (knob.type === "choice") return [-0.5, knob.options.length - 0.5];
    if (knob.type === "int" && !knob.log) return [knob.low - 0.5, knob.high + 0.5];
    return [position(knob, knob.low), position(knob, knob.high)];
  }

  function ticksOf(knob) {
    if (knob.type === "choice") {
      const names = knob.options.map((option) => escape(Film.valueText(option)));
      return { tickvals: names.map((_, i) => i), ticktext: names };
    }
    if (knob.log) return logTicks(...rangeOf(knob));
    if (knob.type === "int" && knob.high - knob.low <= 8) return { dtick: 1, tick0: knob.low };
    return { nticks: 6 };
  }

  function logTicks(from, to) {
    if (to - from < 1.5) {
      const low = Math.ceil(from / 0.30103);
      const count = Math.floor(to / 0.30103) - low + 1;
      const tickvals = Array.from({ length: count }, (_, i) => (low + i) * 0.30103);
      return { tickvals, ticktext: tickvals.map((v) => Film.valueText(10 ** v)) };
    }
    const first = Math.ceil(from - 1e-9);
    const count = Math.floor(to + 1e-9) - first + 1;
    const tickvals = Array.from({ length: count }, (_, i) => first + i);
    return { tickvals, ticktext: tickvals.map(powerText) };
  }

  function powerText(exponent) {
    if (Math.abs(exponent) <= 2) return Film.valueText(10 ** exponent);
    const digits = [...String(Math.abs(exponent))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]);
    return `10${exponent < 0 ? "⁻" : ""}${digits.join("")}`;
  }

  const axisFont = (theme) => ({ color: theme.muted, size: 11 });

  function knobAxis(knob, theme, hasGrid) {
    return {
      title: { text: escape(knob.name), standoff: 6, font: { color: theme.ink, size: 12 } },
      range: rangeOf(knob),
      ...ticksOf(knob),
      tickfont: axisFont(theme),
      ticks: "outside",
      ticklen: 4,
      tickcolor: theme.line,
      showgrid: hasGrid,
      gridcolor: theme.line,
      zeroline: false,
      showline: true,
      mirror: true,
      linecolor: theme.line,
      layer: "below traces",
      fixedrange: true,
    };
  }

  // --- a panel ----------------------------------------------------------------------------------

  /**
   * The probes of a run over what is shown beneath them.
   * view: probes, incumbent, place (a configuration's [x, y] in knob values), x and y (knobs),
   * base (xs, ys, z, low, high, colours) or null, marks, scores (low, high), theme.
   */
  function panel(view) {
    const { x, y, base, theme } = view;
    const data = base === null ? [] : [heatmap(base, x, y)];
    data.push(...probeTraces(view), ...view.marks.flatMap((mark) => markTraces(mark, view)));
    const layout = {
      margin: MARGIN,
      xaxis: knobAxis(x, theme, base === null),
      yaxis: knobAxis(y, theme, base === null),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: theme.ground,
      font: { family: theme.font, color: theme.ink, size: 12 },
      showlegend: false,
      hovermode: "closest",
      dragmode: false,
    };
    return { data, layout };
  }

  function heatmap(base, x, y) {
    const isSmooth = x.type === "float" && y.type === "float";
    return {
      type: "heatmap",
      x: base.xs.map((value) => position(x, value)),
      y: base.ys.map((value) => position(y, value)),
      z: base.z,
      zmin: base.low,
      zmax: base.high,
      colorscale: scaleOf(base.colours),
      showscale: false,
      zsmooth: isSmooth ? "fast" : false,
      hoverinfo: "skip",
    };
  }

  function probeTraces(view) {
    const drawn = view.probes.map((probe, i) => ({
      probe,
      symbol: probe === view.incumbent ? "star" : SYMBOLS[probe.state] ?? "circle",
      age: 1 - (i + 1) / view.probes.length,
    }));
    // The best is drawn last, over its neighbours.
    drawn.sort((a, b) => (a.symbol === "star") - (b.symbol === "star"));
    const isOutline = ({ symbol }) => symbol.endsWith("open") || symbol.endsWith("thin");
    return [
      ...outlineTraces(drawn.filter(isOutline), view),
      solidTrace(drawn.filter((item) => !isOutline(item)), view),
    ];
  }

  function solidTrace(drawn, view) {
    const { base, theme, scores } = view;
    const edge = base === null ? theme.ink : ON_HEATMAP.edge;
    const bare = {
      color: drawn.map(({ probe }) => probe.score),
      colorscale: scaleOf(VIRIDIS),
      cmin: scores.low,
      cmax: scores.high,
    };
    return {
      ...scatter(drawn, view),
      marker: {
        ...(base === null ? bare : { color: ON_HEATMAP.fill }),
        symbol: drawn.map(({ symbol }) => symbol),
        size: drawn.map(({ symbol, age }) => (symbol === "star" ? 19 : sizeAt(age))),
        opacity: drawn.map(({ symbol, age }) => (symbol === "star" ? 1 : 1 - 0.35 * age)),
        line: { color: edge, width: drawn.map(({ symbol }) => (symbol === "star" ? 1.8 : 1.3)) },
      },
    };
  }

  function outlineTraces(drawn, view) {
    const marker = {
      symbol: drawn.map(({ symbol }) => symbol),
      size: drawn.map(({ age }) => sizeAt(age) + 1),
      opacity: 1,
    };
    return twice({ ...scatter(drawn, view), marker }, view);
  }

  /** Hollow symbols are drawn twice, wide and narrow, so that they can be read on any colour. */
  function twice(trace, { base, theme }, colour) {
    const [over, under] = base === null ? [theme.ink, theme.ground] : [ON_HEATMAP.fill, ON_HEATMAP.edge];
    const stroke = (color, width) => ({ ...trace.marker, color, line: { color, width } });
    return [
      { ...trace, marker: stroke(under, 4.5), hoverinfo: "skip" },
      { ...trace, marker: stroke(colour ?? over, 2) },
    ];
  }

  const sizeAt = (age) => 8 + 4 * Math.max(0, 1 - 4 * age);

  function scatter(drawn, view) {
    const spots = drawn.map(({ probe }) => spotOf(probe, view));
    return {
      type: "scatter",
      mode: "markers",
      x: spots.map(([x]) => x),
      y: spots.map(([, y]) => y),
      customdata: drawn.map(({ probe }) => probe.trial.number),
      hoverinfo: "none",
      cliponaxis: false,
    };
  }

  /** A point that is no probe: the best known, or where a searcher would look next. */
  function markTraces({ place, symbol, size, colour }, view) {
    const trace = {
      type: "scatter",
      mode: "markers",
      x: [position(view.x, place[0])],
      y: [position(view.y, place[1])],
      marker: { symbol, size },
      hoverinfo: "skip",
      cliponaxis: false,
    };
    return twice(trace, view, colour);
  }

  /** Where a probe is drawn, in pixels of the panel's plot. */
  function pixel(plot, probe, view) {
    const [x, y] = spotOf(probe, view);
    const along = (knob, spot) => {
      const [from, to] = rangeOf(knob);
      return (spot - from) / (to - from);
    };
    const width = plot.clientWidth - MARGIN.l - MARGIN.r;
    const height = plot.clientHeight - MARGIN.t - MARGIN.b;
    return {
      left: MARGIN.l + width * along(view.x, x),
      top: MARGIN.t + height * (1 - along(view.y, y)),
    };
  }

  // --- the effect of a knob -----------------------------------------------------------------------

  /**
   * Scores over a knob's values, and the quartiles in its cells.
   * groups: one a searcher, with name, colour and points; cells: [low, high, and three quartiles];
   * low and high: of the score axis.
   */
  function effect({ knob, index, groups, cells, low, high, scoreName, theme }) {
    const room = 0.05 * (high - low);
    const place = (value) => (knob.log ? Math.log10(value) : value);
    const clip = (score) => Math.max(score, low);
    const steps = (quartile) => cells.flatMap((cell) => [clip(cell[quartile]), clip(cell[quartile]), null]);
    const ends = cells.flatMap(([from, to]) => [place(from), place(to), null]);
    const bands = cells.map(([from, to, first, , third]) => ({
      type: "rect", x0: place(from), x1: place(to), y0: clip(first), y1: clip(third),
      layer: "below", line: { width: 0 }, fillcolor: theme.muted, opacity: 0.22,
    }));
    const points = groups.map(({ name, colour, points: all }) => ({
      type: "scatter",
      mode: "markers",
      x: all.map(({ config, number }) => spot(knob, config[index], number, 0.7549)),
      y: all.map(({ score }) => clip(score)),
      customdata: all.map(({ number, score }) => [number, Film.scoreText(score)]),
      marker: {
        color: colour, size: 5, opacity: all.length > 100 ? 0.45 : 0.65,
        symbol: all.map(({ isShort }) => (isShort ? "circle-open" : "circle")),
      },
      hovertemplate: `${escape(name)} trial %{customdata[0]}: %{customdata[1]}<extra></extra>`,
      cliponaxis: false,
    }));
    const medians = { ...curve(ends, steps(3)), line: { color: theme.ink, width: 2.6 }, hoverinfo: "skip" };
    const axis = knobAxis(knob, theme, false);
    const layout = {
      margin: { l: 48, r: 10, t: 10, b: 28 },
      xaxis: { ...axis, title: undefined, mirror: false },
      yaxis: {
        title: { text: index === 0 ? escape(scoreName) : "", standoff: 6, font: { color: theme.ink, size: 12 } },
        range: [low - room, high + room], fixedrange: true, gridcolor: theme.line, zeroline: false,
        tickfont: axisFont(theme), nticks: 6,
      },
      shapes: bands,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: theme.font, color: theme.ink, size: 12 },
      hoverlabel: { bgcolor: theme.card, bordercolor: theme.line, font: { color: theme.ink, size: 12 } },
      hovermode: "closest",
      dragmode: false,
      showlegend: false,
    };
    return { data: [...points, medians], layout };
  }

  // --- the chart --------------------------------------------------------------------------------

  /**
   * Best score so far against minutes.
   * groups: one a searcher, with name, entries (its runs) and colour.
   */
  function chart({ film, groups, minute, top, theme }) {
    const data = groups.flatMap((group) =>
      group.entries.length > 1 ? medianTraces(group, minute, film) : lineTraces(group, minute, film),
    );
    const axis = { fixedrange: true, gridcolor: theme.line, zeroline: false, tickfont: axisFont(theme) };
    const range = scoreAxis(film, groups, top);
    const title = (text) => ({ text: escape(text), standoff: 8, font: { color: theme.ink, size: 12 } });
    const layout = {
      margin: { l: 58, r: roomFor(groups), t: 12, b: 46 },
      xaxis: { ...axis, title: title(film.unit), range: [0, Film.length(film)] },
      yaxis: {
        ...axis,
        title: title(film.score_name),
        range: range.map((score) => film.sign * score).sort((a, b) => a - b),
      },
      shapes: top === null ? [] : [levelLine(top, theme)],
      annotations: [...(top === null ? [] : [levelNote(top, theme)]), ...names(groups, minute, range, film, theme)],
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: theme.font, color: theme.ink, size: 12 },
      hoverlabel: { bgcolor: theme.card, bordercolor: theme.line, font: { color: theme.ink, size: 12 } },
      hovermode: "closest",
      dragmode: false,
      showlegend: false,
    };
    return { data, layout };
  }

  /** A floor that leaves out the first climb from chance, which would flatten everything else. */
  function scoreAxis(film, groups, top) {
    const early = 0.06 * Film.length(film);
    const lines = groups.flatMap(({ entries }) => entries.map(({ line }) => line));
    const all = lines.flatMap((line) => line.map(([, score]) => score)).filter((s) => s !== null);
    if (all.length === 0) return [0, 1];
    const high = all.concat(top ?? []).reduce((a, b) => Math.max(a, b));
    const starts = lines.map((line) => Film.valueAt(line, early)).filter((s) => s !== null);
    const gap = 2 * film.least_gap || 1e-6 * Math.abs(high) || 1;
    // Of few experiments, each a person's work, most are worth being seen.
    const told = groups.flatMap(({ entries }) => Film.lastScores(entries));
    const most = film.is_by_hand ? [Film.interestingRange(told, 0).low] : [];
    const low = Math.min(high - gap, ...(starts.length > 0 ? starts : all), ...most);
    const room = 0.08 * (high - low);
    return [low - room, high + room];
  }

  function lineTraces({ name, entries: [entry], colour }, minute, film) {
    const { run, trials } = entry;
    const known = Film.cut(entry.line, Math.min(minute, run.spent));
    const ended = Film.lookAt(entry, minute).probes.filter((p) => p.isOver && p.score !== null);
    const line = {
      ...curve(known.map(([at]) => at), known.map(([, score]) => Film.told(film, score))),
      line: { color: colour, width: 2.6, shape: "hv" },
      hovertemplate: `${escape(name)} %{y:.4~g} at ${momentHere(film)}<extra></extra>`,
    };
    const points = {
      type: "scatter",
      mode: "markers",
      x: ended.map((probe) => probe.trial.ended),
      y: ended.map((probe) => Film.told(film, probe.score)),
      customdata: ended.map((probe) => probe.trial.number),
      marker: { color: colour, size: trials.length > 150 ? 3 : 5, opacity: 0.45 },
      hovertemplate: `${escape(name)} trial %{customdata}: %{y:.4~g}<extra></extra>`,
    };
    return [points, line];
  }

  const momentHere = (film) => (film.is_counted ? "experiment %{x:.0f}" : "minute %{x:.1f}");

  function medianTraces({ name, entries, colour }, minute, film) {
    const rows = Film.spread(entries, Math.min(minute, Math.max(...entries.map(({ run }) => run.spent))));
    const minutes = rows.map(([at]) => at);
    const scores = (quartile) => rows.map((row) => Film.told(film, row[quartile]));
    const edge = { color: colour, width: 0, shape: "hv" };
    return [
      { ...curve(minutes, scores(1)), line: edge, hoverinfo: "skip" },
      {
        ...curve(minutes, scores(3)),
        line: edge,
        fill: "tonexty",
        fillcolor: `${colour}33`,
        hoverinfo: "skip",
      },
      {
        ...curve(minutes, scores(2)),
        line: { color: colour, width: 2.6, shape: "hv" },
        hovertemplate: `${escape(name)}, median %{y:.4~g} at ${momentHere(film)}<extra></extra>`,
      },
    ];
  }

  /** Pixels beside the chart for the longest name, and a little for its distance. */
  const roomFor = (groups) => Math.max(72, ...groups.map(({ name }) => 10 + 7 * name.length));

  /** The searchers' names at the ends of their lines, moved apart where those meet. */
  function names(groups, minute, [low, high], film, theme) {
    const gap = 0.065 * (high - low);
    const ends = groups.flatMap(({ name, entries }) => {
      const scores = entries.map(({ line }) => Film.valueAt(line, minute)).filter((s) => s !== null);
      return scores.length > 0 ? [{ name, y: Math.max(low, Film.quantile(scores, 0.5)) }] : [];
    });
    ends.sort((a, b) => b.y - a.y);
    ends.forEach((end, i) => {
      if (i > 0) end.y = Math.min(end.y, ends[i - 1].y - gap);
    });
    return ends.map(({ name, y }) => ({
      x: minute, y: Film.told(film, y), text: escape(name), showarrow: false, xanchor: "left", xshift: 4,
      font: { color: theme.ink, size: 12 },
    }));
  }

  const curve = (x, y) => ({ type: "scatter", mode: "lines", x, y });

  const levelLine = (top, theme) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: top, y1: top, layer: "below",
    line: { color: theme.muted, width: 1, dash: "dot" },
  });

  const levelNote = (top, theme) => ({
    xref: "paper", x: 0, xanchor: "left", y: top, yanchor: "bottom", showarrow: false,
    text: `the best known: ${Film.scoreText(top)}`, font: { color: theme.muted, size: 11 },
  });

  return { CONFIG, VIRIDIS, CIVIDIS, colourOf, panel, pixel, effect, chart };
})();
