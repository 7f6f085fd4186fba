// The list of runs, and runs side by side.

import { get } from "./api.js";
import { Chart, DASHES } from "./charts.js";
import { el, keyed, setClass, setText, table } from "./dom.js";
import { STATUS, capital, count, duration, moment, number } from "./format.js";

const COLUMNS = ["Run", "Status", "Rounds", "Data", "Method", "Participating", "New", "Time", "Started"];

export function change(run, group) {
  const found = run.groups[group];
  if (found) return `${number(found.before, run.measure)} → ${number(found.after, run.measure)}`;
  return run.withheld?.includes("evaluation") ? "withheld" : "–";
}

export class RunsPage {
  constructor() {
    this.chosen = new Set();
    this.body = el("tbody", { role: "rowgroup" });
    this.said = el("p", { class: "under", role: "status" });
    this.compare = el("a", { class: "button", "aria-disabled": "true" }, "Compare");
    this.find = el("input", { type: "search", placeholder: "Name, data or method", "aria-label": "Find runs", oninput: () => this.show() });
    this.experiments = el("ul", { class: "links" });
    this.experimentsCard = el("section", { class: "card wide", hidden: true }, el("h2", {}, "Experiments"), this.experiments);
    const head = el("tr", { role: "row" }, el("th", { scope: "col", role: "columnheader" }, el("span", { class: "unseen" }, "Compare")),
      COLUMNS.map((title) => el("th", { scope: "col", role: "columnheader" }, title)));
    this.node = el("div", {}, el("div", { class: "heading" }, el("h1", {}, "Runs"), this.compare), this.experimentsCard,
      el("section", { class: "card wide" }, el("div", { class: "filters" }, this.find), this.said,
        el("div", { class: "scrolls" }, el("table", { role: "table", class: "runs cards" },
          el("caption", { class: "unseen" }, "Runs, newest first"), el("thead", { role: "rowgroup" }, head), this.body))));
  }

  async open() {
    try {
      this.listing = await get("/api/runs");
      if (!this.closed) this.show();
    } catch (error) { setText(this.said, error.message); }
    if (!this.closed) this.timer = setTimeout(() => this.open(), document.hidden ? 30000 : 5000);
  }

  show() {
    const { runs, experiments, live, head, more } = this.listing;
    const words = this.find.value.toLowerCase();
    const present = live && head ? [{ run: live, label: head.name || "this run", status: head.status, rounds: head.round, num_rounds: head.num_rounds,
      groups: head.latest.groups ?? {}, measure: head.measure, withheld: head.withheld, seconds: head.elapsed, isLive: true }] : [];
    const shown = [...present, ...runs].filter((run) => [run.label, run.run, run.data, run.method].some((text) => (text ?? "").toLowerCase().includes(words)));
    setText(this.said, `${count(shown.length)} ${shown.length === 1 ? "run" : "runs"}, newest first${more ? `; ${count(more)} older ones are not listed` : ""}`);
    this.experimentsCard.hidden = !experiments.length;
    keyed(this.experiments, experiments, (name) => name, (name) => el("li", {}, el("a", { href: `#/experiment/${encodeURIComponent(name)}` }, name)));
    keyed(this.body, shown, (run) => run.run, (run) => this.make(run), (node, run) => this.change(node, run));
    this.showChosen();
  }

  make(run) {
    const box = el("input", { type: "checkbox", "aria-label": `Compare ${run.label ?? run.run}`, disabled: run.isLive ?? false, onchange: () => {
      if (box.checked) this.chosen.add(run.run);
      else this.chosen.delete(run.run);
      this.showChosen();
    } });
    const link = el("a", { href: `#/run/${encodeURIComponent(run.run)}/overview` }, run.label ?? run.run);
    return el("tr", { role: "row" }, el("td", { role: "cell", class: "pick" }, box),
      el("th", { scope: "row", role: "rowheader" }, link),
      COLUMNS.slice(1).map((title) => el("td", { role: "cell", "data-label": title }, title === "Status" ? el("span") : "")));
  }

  change(node, run) {
    const [word, kind] = STATUS[run.status] ?? [run.status, "warn"];
    const [, , status, ...rest] = node.children;
    setText(status.firstChild, word);
    setClass(status.firstChild, `status ${kind}`);
    const texts = [`${run.rounds} of ${run.num_rounds}`, run.data ?? "–", run.method || "–", change(run, "participating"), change(run, "new"),
      duration(run.seconds), run.isLive ? "goes on here" : moment(run.started)];
    rest.forEach((cell, index) => setText(cell, texts[index]));
    if (run.damage) setText(rest[1], run.damage);
  }

  showChosen() {
    const ready = this.chosen.size > 1;
    setText(this.compare, this.chosen.size ? `Compare ${this.chosen.size} runs` : "Compare");
    this.compare.setAttribute("aria-disabled", String(!ready));
    if (ready) this.compare.href = `#/compare/${[...this.chosen].map(encodeURIComponent).join(",")}`;
    else this.compare.removeAttribute("href");
  }

  close() { this.closed = true; clearTimeout(this.timer); }
}

export class ComparePage {
  constructor(names) {
    this.names = names;
    this.place = el("div", { class: "overview" }, el("p", { class: "loading" }, "Reading the runs …"));
    this.node = el("div", {}, el("div", { class: "heading" }, el("h1", {}, "Compared"), el("a", { class: "button quiet", href: "#/runs" }, "Choose others")), this.place);
    this.charts = [];
  }

  async open() {
    const { runs, options } = await get(`/api/compare?${new URLSearchParams(this.names.map((name) => ["run", name]))}`);
    if (this.closed) return;
    const measures = [...new Set(runs.map((run) => run.measure).filter(Boolean))];
    const results = table("Results", [
      { title: "run", value: (run) => el("a", { href: `#/run/${encodeURIComponent(run.run)}/overview` }, run.run) },
      { title: "status", value: (run) => (STATUS[run.status] ?? [run.status])[0] },
      { title: "judged by", value: (run) => run.measure ?? "–" },
      { title: "participating", value: (run) => change(run, "participating") }, { title: "new", value: (run) => change(run, "new") },
      { title: "rounds", number: true, value: (run) => String(run.rounds) }, { title: "time", number: true, value: (run) => duration(run.seconds) },
    ], runs, { className: "cards" });
    const differing = options.length ? table("Options that differ", [
      { title: "option", value: (row) => el("code", {}, row.key) },
      ...runs.map((run, index) => ({ title: run.run, value: (row) => String(row.values[index] ?? "–") })),
    ], options, { className: "options cards" }) : el("p", { class: "empty" }, "Their options are the same.");
    this.place.replaceChildren(
      el("section", { class: "card wide full" }, el("h2", {}, "Results"), results),
      ...measures.flatMap((measure) => this.curves(runs.filter((run) => run.measure === measure), measure)),
      el("section", { class: "card wide full" }, el("h2", {}, "Options that differ"), differing));
    for (const [chart, rows] of this.charts) chart.set(rows);
  }

  curves(runs, measure) {
    const format = (value) => number(value, measure);
    const style = (index) => ({ ink: `run-${index % 8}`, dash: DASHES[index % DASHES.length], width: 2 });
    const rounds = new Map();
    runs.forEach((run, index) => {
      for (const [round, , after] of run.progress.participating ?? []) rounds.set(round, { ...rounds.get(round), round, [index]: after });
    });
    const steps = Array.from({ length: Math.max(0, ...runs.map((run) => run.groups.participating?.curve.length ?? 0)) }, (_each, step) => ({ step }));
    const byRound = new Chart({ title: `${capital(measure)} of participating clients after fine-tuning`, xTitle: "round", x: (row) => row.round, format,
      series: runs.map((run, index) => ({ title: run.run, ...style(index), value: (row) => row[index] })) });
    const byStep = new Chart({ title: `${capital(measure)} after s steps, at the end`, xTitle: "steps s", x: (row) => row.step, format,
      series: runs.map((run, index) => ({ title: run.run, ...style(index), value: (row) => run.groups.participating?.curve[row.step] })) });
    this.charts.push([byRound, [...rounds.values()].sort((one, other) => one.round - other.round)], [byStep, steps]);
    return [byRound, byStep].map((chart) => el("section", { class: "card half" }, chart.node));
  }

  close() { this.closed = true; for (const [chart] of this.charts) chart.close(); }
}
