"use strict";

/* Where the page has its data from: the server, or the film that a report carries within it. */
const Sources = (() => {
  /** The film of a report; null on a served page. */
  function embeddedFilm() {
    const element = document.getElementById("film-data");
    return element === null ? null : JSON.parse(element.textContent);
  }

  async function get(path, parameters = {}) {
    const query = new URLSearchParams(parameters).toString();
    const response = await fetch(query ? `${path}?${query}` : path);
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.text);
    return answer;
  }

  /**
   * Follows a race: `on` has film, more, verdict, end, problem and lost. Returns what stops it.
   * A study that is being trained is there after a lost connection, and is asked for again; a demo
   * would be computed anew from its start, so that is left to the user.
   */
  function watch(parameters, isStudy, on) {
    const query = new URLSearchParams(parameters).toString();
    const stream = new EventSource(query ? `events?${query}` : "events");
    const listen = (kind, isLast) => stream.addEventListener(kind, (event) => {
      if (isLast) stream.close();
      on[kind](JSON.parse(event.data));
    });
    ["film", "more", "verdict"].forEach((kind) => listen(kind, false));
    ["problem", "end"].forEach((kind) => listen(kind, true));
    stream.onerror = () => {
      const isRetrying = isStudy && stream.readyState === EventSource.CONNECTING;
      if (!isRetrying) stream.close();
      on.lost(isRetrying);
    };
    return () => stream.close();
  }

  /** Why a race was not begun; the stream itself cannot tell. Null where it would be begun now. */
  async function refusal(parameters) {
    const aborting = new AbortController();
    try {
      const response = await fetch(`events?${new URLSearchParams(parameters)}`, aborting);
      return response.ok ? null : (await response.json()).text;
    } catch {
      return "The server does not answer.";
    } finally {
      aborting.abort();
    }
  }

  /** What can lie beneath the probes of a race: the landscape, and what Bayes believes of it. */
  class Maps {
    constructor(film, onArrival) {
      this.film = film;
      this.isReport = document.getElementById("film-data") !== null;
      this.onArrival = onArrival;
      this.answers = new Map();
      this.lastBelief = new Map();
      this.isAsking = false;
    }

    get hasBeliefs() {
      return this.isReport ? (this.film.beliefs ?? []).length > 0 : Boolean(this.film.race);
    }

    /** The pairs of knobs that can be looked at, the first to open with. */
    get pairs() {
      const { film } = this;
      const stored = film.pairs ?? (film.surfaces ?? []).map(({ x, y }) => [x, y]);
      if (stored.length > 0) return [...stored, ...stored.map(([x, y]) => [y, x])];
      const names = film.knobs.map((knob) => knob.name);
      return names.flatMap((x) => names.filter((y) => y !== x).map((y) => [x, y]));
    }

    /** The landscape over two knobs; null where there is none, or not yet. */
    surface(x, y) {
      if (this.film.landscape === null) return null;
      if (this.isReport) return stored(this.film.surfaces, x, y).at(-1) ?? null;
      const place = this.film.mode === "demo" ? { landscape: this.film.landscape.name } : {};
      return this.ask("surface", { ...place, x, y });
    }

    /** What was believed in a run at a minute; what came last, while that is awaited. */
    belief(run, at, x, y) {
      if (this.isReport) return this.storedBelief(run, at, x, y);
      const question = { race: this.film.race, run, at, x, y };
      // One at a time: a film that plays on would ask faster than a model can be fitted.
      const answer = this.isAsking ? this.answers.get(keyOf("belief", question)) : this.ask("belief", question);
      return answer ?? this.lastBelief.get(slice(question)) ?? null;
    }

    storedBelief(run, at, x, y) {
      const ofRun = stored(this.film.beliefs, x, y).filter((map) => map.run === run);
      if (ofRun.length === 0) return { text: "This report has no beliefs about these two knobs." };
      const earlier = ofRun.filter((map) => map.at <= at + 1e-9).sort((a, b) => a.at - b.at);
      return earlier.at(-1) ?? { text: "Bayes has no model yet: it is still at its starting points." };
    }

    /** The answer to a question that has been asked; null, and asks, where it has not. */
    ask(path, question) {
      const key = keyOf(path, question);
      if (!this.answers.has(key)) {
        this.answers.set(key, null);
        if (path === "belief") this.fetchBelief(key, question);
        else this.fetch(key, path, question);
      }
      return this.answers.get(key);
    }

    async fetchBelief(key, question) {
      this.isAsking = true;
      const answer = await this.fetch(key, "belief", question);
      this.isAsking = false;
      this.lastBelief.set(slice(question), answer);
    }

    async fetch(key, path, question) {
      const answer = await get(path, question).catch((error) => ({ text: error.message }));
      this.answers.set(key, answer);
      this.onArrival();
      return answer;
    }
  }

  const keyOf = (path, question) => path + JSON.stringify(question);
  const slice = ({ run, x, y }) => JSON.stringify([run, x, y]);

  /** The maps over two knobs, those that are stored the other way round turned. */
  function stored(maps, x, y) {
    const turned = maps.filter((map) => map.x === y && map.y === x).map(turn);
    return [...maps.filter((map) => map.x === x && map.y === y), ...turned];
  }

  function turn(map) {
    const layers = ["z", "mean", "sd", "gap_sd"].filter((name) => map[name] !== undefined);
    const turned = layers.map((name) => [name, transpose(map[name])]);
    return { ...map, x: map.y, y: map.x, xs: map.ys, ys: map.xs, ...Object.fromEntries(turned) };
  }

  const transpose = (rows) => rows[0].map((_, i) => rows.map((row) => row[i]));

  return { embeddedFilm, get, watch, refusal, Maps };
})();
