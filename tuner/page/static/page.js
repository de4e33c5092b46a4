"use strict";

/* The page: brings the film, the player and the pictures together. */
(() => {
  const byId = (id) => document.getElementById(id);
  const DRAW_EVERY_MS = 100;
  const NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven"];

  const page = {
    catalog: null,
    film: null,
    entries: [],
    maps: null,
    card: null,
    player: null,
    seed: null,
    x: null,
    y: null,
    theme: null,
    stopStream: () => {},
  };
  window.tunerPage = {
    get minute() { return page.player.minute; },
    get film() { return page.film; },
  };

  const shownEntries = () => page.entries.filter(({ run }) => run.seed === page.seed);

  function start() {
    page.card = new Panels.ProbeCard(byId("probe-card"));
    page.player = new Controls.Player({ move: requestDraw, jump: Outcome.skipNews }, shownEntries);
    startTheme();
    listen();
    const film = Sources.embeddedFilm();
    if (film !== null) showFilm(film);
    else openCatalog().catch((error) => showProblem(`The server does not answer: ${error.message}`));
  }

  async function openCatalog() {
    page.catalog = await Sources.get("catalog");
    if (page.catalog.mode === "study") return watch({}, true);
    setTagline(page.catalog.chosen.length);
    return new Controls.Setup(page.catalog, (parameters) => watch(parameters, false));
  }

  function listen() {
    byId("reveal").addEventListener("change", requestDraw);
    byId("theme").addEventListener("click", () => {
      const name = page.theme.name === "dark" ? "light" : "dark";
      setTheme(name);
      storeTheme(name);
    });
    byId("x-knob").addEventListener("change", () => chooseKnobs(byId("x-knob").value, null));
    byId("y-knob").addEventListener("change", () => chooseKnobs(null, byId("y-knob").value));
    byId("shown-seed").addEventListener("change", () => {
      page.seed = Number(byId("shown-seed").value);
      page.card.close();
      requestDraw();
    });
  }

  // --- a race arrives ---------------------------------------------------------------------------

  function watch(parameters, isStudy) {
    page.stopStream();
    showProblem("");
    let hasBegun = false;
    page.stopStream = Sources.watch(parameters, isStudy, {
      film: (film) => {
        showProblem("");
        showFilm(film, isStudy && hasBegun);
        hasBegun = true;
      },
      more: (more) => {
        Film.upsert(page.film, more);
        refresh();
      },
      verdict: (verdict) => {
        page.film.verdict = verdict;
        refresh();
      },
      problem: ({ text }) => showProblem(text),
      end: () => {
        // The end of the stream is that of the film, even where a race was given up.
        if (isStudy) page.film.mode = "finished";
        refresh();
      },
      lost: (isRetrying) => explainLoss(isRetrying, hasBegun, parameters),
    });
  }

  async function explainLoss(isRetrying, hasBegun, parameters) {
    const remedy = page.catalog.mode === "demo" ? "Press Run to start again." : "Reload to try again.";
    const lost = `The connection was lost. ${remedy}`;
    if (isRetrying) showProblem("The connection was lost; trying again…");
    else showProblem(hasBegun ? lost : await Sources.refusal(parameters) ?? lost);
  }

  function showProblem(text) {
    byId("problem").textContent = text;
    byId("problem").hidden = text === "";
  }

  /** A whole film: a new race, or one that is sent again after a lost connection. */
  function showFilm(film, isAgain = false) {
    page.film = film;
    page.maps = new Sources.Maps(film, requestDraw);
    page.card.close();
    byId("intro").hidden = true;
    byId("race").hidden = false;
    showTitle(film);
    fillKnobs(film);
    fillSeeds(film);
    refresh();
    if (isAgain) return;
    page.player.cue(film);
    if (page.player.isFollowing) Outcome.announce(film.is_by_hand ? "Following what is told." : "Following the race as it runs.");
    else if (!page.player.isAtEnd) Outcome.announce("The race starts.");
  }

  /** Takes in what has changed in the film. */
  function refresh() {
    page.entries = Film.open(page.film);
    page.player.take(page.film);
  }

  function showTitle(film) {
    const { landscape } = film;
    const title = landscape?.title ?? film.title;
    document.title = `${title} – tuner`;
    byId("race-title").hidden = false;
    byId("race-name").textContent = title;
    byId("race-about").textContent = landscape?.about ?? "";
    byId("race-badge").textContent = landscape?.badge ?? film.badge;
    byId("reveal-control").hidden = landscape === null;
    byId("no-landscape").hidden = landscape !== null;
    if (film.is_by_hand) showByHand(film);
    else setTagline(Film.searchers(film).length);
  }

  /** Other words where people do the trials, and nothing was set to be spent. */
  function showByHand(film) {
    byId("tagline").textContent = "Every trial is a person's work. Watch where to look next.";
    byId("no-landscape").hidden = true;
    byId("legend-running").textContent = "waits for its result";
    byId("legend-broken").textContent = "infeasible or failed";
    for (const swatch of document.querySelectorAll(".swatch")) swatch.parentElement.hidden = true;
    byId("facts-spent").textContent = film.is_counted ? "Experiments" : "Minutes spent";
  }

  function setTagline(count) {
    byId("tagline").textContent = count > 1
      ? `Same budget, ${NUMBERS[count] ?? count} ways of searching. Watch where each one looks.`
      : "A fixed budget, one way of searching. Watch where it looks.";
  }

  function fillSeeds(film) {
    const seeds = Film.seeds(film);
    if (!seeds.includes(page.seed)) page.seed = seeds[0];
    byId("seed-control").hidden = seeds.length <= 1;
    byId("shown-seed").replaceChildren(...seeds.map((seed) => new Option(seed)));
    byId("shown-seed").value = page.seed;
  }

  // --- which knobs are looked at ----------------------------------------------------------------

  function fillKnobs({ knobs }) {
    const names = knobs.map((knob) => knob.name);
    byId("knob-controls").hidden = names.length <= 2;
    for (const id of ["x-knob", "y-knob"]) {
      byId(id).replaceChildren(...names.map((name) => new Option(name)));
    }
    const { pairs } = page.maps;
    const kept = pairs.find(([x, y]) => x === page.x && y === page.y);
    // A study of a single knob has no pair: it is drawn against the score.
    setKnobs(...(kept ?? pairs[0] ?? [names[0], null]));
  }

  /** Grants the wish for one knob; the other stays, or takes its place, or gives way. */
  function chooseKnobs(x, y) {
    const pairs = page.maps.pairs.filter((pair) => (x === null ? pair[1] === y : pair[0] === x));
    const isStaying = (pair) => (x === null ? pair[0] === page.x : pair[1] === page.y);
    const isSwapped = (pair) => pair[0] === page.y && pair[1] === page.x;
    setKnobs(...(pairs.find(isStaying) ?? pairs.find(isSwapped) ?? pairs[0] ?? [page.x, page.y]));
  }

  function setKnobs(x, y) {
    [page.x, page.y] = [x, y];
    [byId("x-knob").value, byId("y-knob").value] = [x, y];
    page.card.close();
    requestDraw();
  }

  // --- light and dark ---------------------------------------------------------------------------

  function startTheme() {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    setTheme(storedTheme() ?? system);
  }

  /** Null where nothing is stored, or where storage is refused, as to a page opened from disk. */
  function storedTheme() {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  }

  function storeTheme(name) {
    try {
      localStorage.setItem("theme", name);
    } catch {
      // Without storage the choice lasts for this visit.
    }
  }

  function setTheme(name) {
    const root = document.documentElement;
    const other = name === "dark" ? "light" : "dark";
    root.dataset.theme = name;
    byId("theme").textContent = other === "dark" ? "◐ Dark" : "◐ Light";
    byId("theme").setAttribute("aria-label", `Switch to the ${other} theme`);
    // Plotly takes no custom properties: it is given the colours that they come to.
    const colour = (token) => {
      root.style.outlineColor = `var(--${token})`;
      return getComputedStyle(root).outlineColor;
    };
    const tokens = ["ink", "muted", "line", "card", "ground"].map((token) => [token, colour(token)]);
    root.style.outlineColor = "";
    page.theme = { name, font: getComputedStyle(root).fontFamily, ...Object.fromEntries(tokens) };
    requestDraw();
  }

  // --- drawing ----------------------------------------------------------------------------------

  let lastDrawn = 0;
  let drawTimer = null;

  /** Draws soon, and no more often than the eye needs. */
  function requestDraw() {
    if (drawTimer !== null || page.film === null) return;
    const wait = Math.max(0, DRAW_EVERY_MS - (performance.now() - lastDrawn));
    drawTimer = setTimeout(() => {
      drawTimer = null;
      lastDrawn = performance.now();
      draw();
    }, wait);
  }

  function draw() {
    const { film, player } = page;
    const view = {
      film,
      entries: page.entries,
      looks: shownEntries().map((entry) => Film.lookAt(entry, player.minute)),
      maps: page.maps,
      x: page.x,
      y: page.y,
      card: page.card,
      minute: player.minute,
      isOver: player.isAtEnd,
      isMoving: player.isPlaying,
      isRevealed: byId("reveal").checked,
      theme: page.theme,
      colourOf,
      onChange: requestDraw,
    };
    player.draw();
    Stage.draw(view);
    Outcome.draw(view);
    Effects.draw(view);
  }

  /** A searcher keeps its colour from one race to the next. */
  function colourOf(searcher) {
    const order = [...new Set([...(page.catalog?.searchers ?? []), ...Film.searchers(page.film)])];
    return Figures.colourOf(order.indexOf(searcher), page.theme.name === "dark");
  }

  document.addEventListener("DOMContentLoaded", start);
})();
