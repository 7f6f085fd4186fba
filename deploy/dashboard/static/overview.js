// The first screen: where the run stands, what it is judged by before and after fine-tuning, and what needs attention.

import { Chart } from "./charts.js";
import { el, keyed, setClass, setText } from "./dom.js";
import { NOT_COVERED, capital, count, duration, number, withheld } from "./format.js";

const LEVELS = { error: ["■", "Problem"], warning: ["▲", "Warning"], info: ["●", "Note"] };

export class Overview {
  constructor(run) {
    this.run = run;
    this.round = el("p", { class: "figure" });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Rounds done" });
    this.left = el("p", { class: "under" });
    this.phase = el("p", { class: "under" });
    this.groups = {};
    this.attention = el("ul", { class: "attention" });
    this.counts = {};
    const counts = ["working", "idle", "left"].map((state) => {
      this.counts[state] = el("dd");
      return el("div", {}, el("dt", {}, capital(state)), this.counts[state]);
    });
    this.chartPlace = el("div");
    this.scores = el("div", { class: "scores" }, ["participating", "new"].map((name) => this.scoreOf(name)));
    this.node = el("div", { class: "overview" },
      el("section", { class: "card first standing", "aria-label": "Where the run stands" },
        el("h2", {}, "Progress"), this.round, this.bar, this.left, this.phase,
        this.countsNode = el("dl", { class: "counts" }, counts)),
      el("section", { class: "card wide first", "aria-label": "Result" }, this.title = el("h2", {}, "Result"), this.scores),
      el("section", { class: "card wide" }, this.chartPlace),
      el("section", { class: "card soon", "aria-labelledby": "attention-title" },
        el("h2", { id: "attention-title" }, "Needs attention"), this.attention));
  }

  scoreOf(name) {
    const parts = { before: el("span", { class: "before" }), after: el("span", { class: "after" }),
      under: el("p", { class: "under" }) };
    this.groups[name] = parts;
    parts.node = el("div", { class: "score" },
      el("h3", {}, el("span", { class: `dot ink-${name}`, "aria-hidden": "true" }), name === "new" ? "New clients" : "Participating clients"),
      el("p", { class: "figure" }, parts.before, el("span", { class: "arrow", "aria-hidden": "true" }, " → "),
        el("span", { class: "unseen" }, " before, after fine-tuning "), parts.after),
      parts.under);
    return parts.node;
  }

  update() {
    const { head, evaluations, curves, options } = this.run.state;
    const share = head.num_rounds ? head.round / head.num_rounds : Number(head.status === "complete");
    setText(this.round, head.num_rounds ? `Round ${head.round} of ${head.num_rounds}` : "No rounds: each client alone");
    if (this.bar.value !== share) this.bar.value = share;
    const elapsed = head.elapsed === null ? "" : `${duration(head.elapsed)} so far`;
    const over = head.elapsed === null ? "" : `took ${duration(head.elapsed)}`;
    const running = head.status === "running" || head.status === "waiting";
    setText(this.left, running ? [head.left === null ? "" : `about ${duration(head.left)} left`, elapsed].filter(Boolean).join(" · ") : over);
    setText(this.phase, head.is_reading ? "Reading the run's log …" : head.phase ? capital(`${head.phase} …`) : "");
    setText(this.title, head.measure ? `${capital(head.measure)}, before → after ${head.step} fine-tuning steps` : "Result");
    for (const [name, parts] of Object.entries(this.groups)) {
      const last = evaluations.findLast((each) => each.groups[name]);
      const scores = last?.groups[name];
      setText(parts.before, scores ? number(scores.before, head.measure) : "–");
      setText(parts.after, scores ? number(scores.after, head.measure) : "–");
      const worst = curves[name]?.round === last?.round ? curves[name]?.worst_decile?.[head.step] : undefined;
      setText(parts.under, scores
        ? `${count(scores.num_clients)} ${options?.["evaluation.num-clients"] ? "sampled " : ""}clients, after round ${last.round}${worst === undefined || withheld(head, "client-curves") ? "" : ` · worst tenth ${number(worst, head.measure)}`}`
        : withheld(head, "evaluation") ? "withheld: ε does not cover it" : name === "new" ? "judged once, at the end of the run" : "not judged yet");
    }
    this.countsNode.hidden = !running || withheld(head, "participants");
    for (const [state, node] of Object.entries(this.counts)) setText(node, count(head.clients[state]));
    keyed(this.attention, head.attention.length ? head.attention : [{ level: "none", text: head.is_reading ? "…" : "Nothing.", items: [] }],
      (each) => `${each.level} ${each.text.replace(/\d+/g, "#")}`, () => this.makeEntry(), (node, each) => this.changeEntry(node, each));
    this.draw(head, evaluations, curves);
  }

  makeEntry() {
    return el("li", {}, el("span", { class: "mark", "aria-hidden": "true" }), el("div", {}, el("p"), el("ul")));
  }

  changeEntry(node, entry) {
    const [mark, word] = LEVELS[entry.level] ?? ["✓", ""];
    setClass(node, entry.level);
    setText(node.firstChild, mark);
    const [text, items] = node.lastChild.children;
    setText(text, word ? `${word}: ${entry.text}` : entry.text);
    keyed(items, entry.items.map((item, index) => [index, item]), ([index]) => index, () => el("li"),
      (line, [, item]) => setText(line, item));
  }

  draw(head, evaluations) {
    if (this.measure !== head.measure) {
      this.measure = head.measure;
      this.chart?.close();
      const of = (group, key) => (row) => row.groups[group]?.[key];
      this.chart = new Chart({
        title: `${capital(head.measure || "result")} by round`, xTitle: "round", x: (row) => row.round,
        format: (value) => number(value, head.measure), empty: "No evaluation yet.",
        series: [
          { title: "participating, after", ink: "participating", width: 2.5, value: of("participating", "after") },
          { title: "participating, before", ink: "participating", dash: [5, 4], width: 1.5, value: of("participating", "before") },
          { title: "new, after", ink: "new", width: 2.5, points: true, value: of("new", "after") },
          { title: "new, before", ink: "new", dash: [2, 4], width: 1.5, points: "hollow", value: of("new", "before") },
        ],
      });
      this.chartPlace.replaceChildren(this.chart.node);
    }
    this.chart.set(evaluations, withheld(head, "evaluation") ? NOT_COVERED : undefined);
  }

  close() { this.chart?.close(); }
}
