"use strict";

/* What the viewer sets: the race to be run, and the minute of it that is looked at. */
const Controls = (() => {
  const byId = (id) => document.getElementById(id);
  const SECONDS_PER_RACE = 20;

  // --- the form of a demo -----------------------------------------------------------------------

  /** Offers what the catalog has; `onRun` is given the parameters of a race. */
  class Setup {
    constructor(catalog, onRun) {
      this.catalog = catalog;
      const isFormula = ({ badge }) => badge === "a formula";
      addGroup("Formulas", catalog.landscapes.filter(isFormula));
      addGroup("Recorded from real training", catalog.landscapes.filter((one) => !isFormula(one)));
      for (const name of catalog.searchers) {
        byId("searchers").append(searcherBox(name, catalog.chosen.includes(name)));
      }
      Object.assign(byId("budget"), { min: catalog.budget.low, max: catalog.budget.high });
      this.choose();
      byId("setup").hidden = false;
      byId("intro").hidden = false;
      byId("landscape").addEventListener("change", () => this.choose());
      byId("setup").addEventListener("submit", (event) => {
        event.preventDefault();
        // From here on the title says it.
        byId("landscape-about").hidden = true;
        onRun(this.parameters());
      });
    }

    /** A landscape comes with the budget that suits it. */
    choose() {
      const chosen = this.catalog.landscapes.find(({ name }) => name === byId("landscape").value);
      if (chosen === undefined) return;
      byId("budget").value = chosen.budget;
      byId("landscape-about").textContent =
        `${chosen.about} ${Film.plural(chosen.knobs, "knob")}, ${chosen.badge}.`;
      byId("landscape-about").hidden = false;
    }

    parameters() {
      return {
        landscape: byId("landscape").value,
        searchers: chosenSearchers().join(","),
        seed: byId("seed").value,
        budget: byId("budget").value,
      };
    }
  }

  function addGroup(label, landscapes) {
    if (landscapes.length === 0) return;
    const group = document.createElement("optgroup");
    group.label = label;
    group.append(...landscapes.map(({ title, name }) => new Option(title, name)));
    byId("landscape").append(group);
  }

  function searcherBox(name, isChosen) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", name: "searcher", value: name, checked: isChosen });
    box.addEventListener("change", () => {
      byId("run").disabled = chosenSearchers().length === 0;
    });
    label.append(box, name);
    return label;
  }

  const chosenSearchers = () =>
    [...document.querySelectorAll("input[name=searcher]:checked")].map((box) => box.value);

  // --- the player -------------------------------------------------------------------------------

  /** The clock of a film. `on.move` is called when it has moved, `on.jump` when by hand. */
  class Player {
    constructor(on, shownEntries) {
      this.on = on;
      this.shownEntries = shownEntries;
      this.film = null;
      this.minute = 0;
      this.isPlaying = false;
      this.isFollowing = false;
      byId("play").addEventListener("click", () => this.toggle());
      byId("step").addEventListener("click", () => this.step());
      byId("reset").addEventListener("click", () => this.stopAt(0));
      byId("live").addEventListener("click", () => this.follow());
      byId("scrub").addEventListener("input", () => this.stopAt(Number(byId("scrub").value)));
    }

    get horizon() {
      return Film.horizon(this.film);
    }

    get isAtEnd() {
      return Film.isComplete(this.film) && this.minute >= Film.length(this.film);
    }

    /** Goes on with a film that has grown, or been sent again. */
    take(film) {
      this.film = film;
      this.moveTo(this.isFollowing ? this.horizon : this.minute);
    }

    /** Where a new film starts, and whether it plays. */
    cue(film) {
      const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.pause();
      this.film = film;
      if (film.mode === "live" && !Film.isComplete(film)) this.follow();
      else if (film.mode !== "demo" && isStill) this.jump(this.horizon);
      else {
        this.jump(0);
        this.play();
      }
    }

    play() {
      this.isFollowing = false;
      this.isPlaying = true;
      this.lastTick = null;
      this.frame = requestAnimationFrame((now) => this.tick(now));
      this.on.move();
    }

    pause() {
      cancelAnimationFrame(this.frame);
      this.isPlaying = false;
    }

    toggle() {
      if (this.isPlaying) return this.stopAt(this.minute);
      if (this.minute >= this.horizon) this.jump(0);
      return this.play();
    }

    tick(now) {
      const seconds = this.lastTick === null ? 0 : Math.min(0.5, (now - this.lastTick) / 1000);
      const pace = (Film.length(this.film) / SECONDS_PER_RACE) * Number(byId("speed").value);
      this.lastTick = now;
      this.moveTo(this.minute + seconds * pace);
      if (this.minute >= this.horizon) this.arrive();
      if (this.isPlaying) this.frame = requestAnimationFrame((next) => this.tick(next));
    }

    /** At the newest that is known: the end, or where a live race is followed from now on. */
    arrive() {
      if (Film.isComplete(this.film)) this.pause();
      else if (this.film.mode === "live") this.follow();
    }

    follow() {
      this.pause();
      this.isFollowing = true;
      this.jump(this.horizon);
    }

    step() {
      this.stopAt(Film.nextEvent(this.shownEntries(), this.minute, this.horizon));
    }

    stopAt(minute) {
      this.pause();
      this.isFollowing = false;
      this.jump(minute);
    }

    jump(minute) {
      this.on.jump();
      this.moveTo(minute);
    }

    moveTo(minute) {
      this.minute = Math.min(Math.max(0, minute), this.horizon);
      this.on.move();
    }

    draw() {
      const length = Film.length(this.film);
      const words = `${Film.moment(this.film, this.minute)} of ${Film.plain(length)}`;
      const bar = byId("scrub");
      byId("play").textContent = this.isPlaying ? "Pause" : "Play";
      byId("live").hidden = this.film.mode !== "live" || Film.isComplete(this.film);
      byId("live").setAttribute("aria-pressed", this.isFollowing);
      byId("minute").textContent = words;
      bar.max = length;
      bar.value = this.minute;
      bar.setAttribute("aria-valuetext", words);
      bar.style.setProperty("--played", `${(100 * this.minute) / length}%`);
      bar.style.setProperty("--known", `${(100 * this.horizon) / length}%`);
    }
  }

  return { Setup, Player };
})();
