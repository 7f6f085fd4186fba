// An experiment: runs done and left, and how the methods stand.

import { get } from "./api.js";
import { el, setText, table } from "./dom.js";
import { capital, count, duration, number } from "./format.js";

const STATES = { complete: "✓ complete", running: "▶ running", waiting: "○ waiting" };

export class ExperimentPage {
  constructor(name) {
    this.name = name;
    this.heading = el("h1", {}, name);
    this.about = el("p", { class: "under" });
    this.figure = el("p", { class: "figure" });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Runs done" });
    this.left = el("p", { class: "under", role: "status" });
    this.standing = el("div");
    this.cells = el("div");
    this.node = el("div", {}, el("div", { class: "heading" }, el("div", {}, this.heading, this.about)),
      el("div", { class: "overview" },
        el("section", { class: "card" }, el("h2", {}, "Progress"), this.figure, this.bar, this.left),
        el("section", { class: "card wide" }, el("h2", {}, "Standing"), this.standing),
        el("section", { class: "card wide full" }, el("h2", {}, "Runs"), this.cells)));
  }

  async open() {
    try {
      const found = await get(`/api/experiments/${encodeURIComponent(this.name)}`);
      if (!this.closed) this.show(found);
    } catch (error) { setText(this.left, error.message); }
    if (!this.closed) this.timer = setTimeout(() => this.open(), document.hidden ? 30000 : 3000);
  }

  show(found) {
    const key = JSON.stringify([found.standing, found.cells]);
    setText(this.about, found.title);
    setText(this.figure, `${count(found.done)} of ${count(found.total)} runs`);
    this.bar.value = found.total ? found.done / found.total : 0;
    const left = found.seconds_left === null || found.seconds_left === undefined ? "" : `, about ${duration(found.seconds_left)} left`;
    setText(this.left, found.is_finished ? "Finished" : `${capital(found.part || "running")}${left}`);
    if (this.shown === key) return;
    this.shown = key;
    const of = (group) => (row) => number(row.after[group], found.measure);
    this.standing.replaceChildren(found.standing.length ? table(`Means over seeds of ${found.measure} after fine-tuning`, [
      { title: "method", value: (row) => row.entry }, { title: "new clients", number: true, value: of("new") },
      { title: "participating", number: true, value: of("participating") }, { title: "seeds", number: true, value: (row) => String(row.seeds) },
      { title: "without results", number: true, value: (row) => String(row.without_results) },
    ], found.standing, { className: "cards" }) : el("p", { class: "empty" }, "No final run is done yet."));
    this.cells.replaceChildren(found.cells.length ? table("Runs of this experiment", [
      { title: "method", value: (row) => (row.state === "complete" ? el("a", { href: `#/run/${encodeURIComponent(row.run)}/overview` }, row.entry) : row.entry) },
      { title: "seed", number: true, value: (row) => String(row.seed) },
      { title: "state", value: (row) => STATES[row.state] ?? `■ ${row.state}` },
      { title: "new clients", number: true, value: (row) => number(row.after?.new, found.measure) },
      { title: "participating", number: true, value: (row) => number(row.after?.participating, found.measure) },
      { title: "time", number: true, value: (row) => duration(row.seconds) },
    ], found.cells, { className: "cards" }) : el("p", { class: "empty" }, "No runs yet."));
  }

  close() { this.closed = true; clearTimeout(this.timer); }
}
