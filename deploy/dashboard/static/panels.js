// The further panels of a run: the adaptation curve, costs, configuration and events.

import { Chart } from "./charts.js";
import { el, keyed, setClass, setText, table } from "./dom.js";
import { NOT_COVERED, bytes, capital, clock, count, duration, number, told, withheld } from "./format.js";

export class Adaptation {
  constructor(run) {
    this.run = run;
    this.place = el("div");
    this.when = el("p", { class: "under" });
    this.node = el("section", { class: "card wide" }, el("h2", {}, "What fine-tuning does"), this.when, this.place);
  }

  update() {
    const { head, curves } = this.run.state;
    if (this.measure !== head.measure) {
      this.measure = head.measure;
      this.chart?.close();
      const of = (group, key) => (row) => row[group]?.[key];
      this.chart = new Chart({
        title: `${capital(head.measure || "result")} after s fine-tuning steps`, xTitle: "steps s", x: (row) => row.step,
        format: (value) => number(value, head.measure), height: 320, empty: "No evaluation yet.",
        series: [
          { title: "participating", ink: "participating", width: 2.5, value: of("participating", "curve") },
          { title: "worst tenth of them", ink: "participating", dash: [5, 4], width: 1.5, value: of("participating", "worst") },
          { title: "new", ink: "new", width: 2.5, dash: [10, 3], value: of("new", "curve") },
          { title: "worst tenth of them", ink: "new", dash: [2, 4], width: 1.5, value: of("new", "worst") },
        ],
      });
      this.place.replaceChildren(this.chart.node);
    }
    const said = Object.entries(curves).map(([name, each]) => `${name} clients after round ${each.round}`);
    setText(this.when, said.length ? `Means over ${said.join(", ")}. The run is compared at s = ${head.step}.` : "");
    const length = Math.max(0, ...Object.values(curves).map((each) => each.curve.length));
    this.chart.set(Array.from({ length }, (_each, step) => ({
      step,
      ...Object.fromEntries(Object.entries(curves).map(([name, each]) =>
        [name, { curve: each.curve[step], worst: each.worst_decile?.[step] }])),
    })), withheld(head, "evaluation") ? NOT_COVERED : undefined);
  }

  close() { this.chart?.close(); }
}

export class Costs {
  constructor(run) {
    this.run = run;
    this.tiles = {};
    const tile = (key, title) => el("div", { class: "tile" }, el("dt", {}, title), this.tiles[key] = el("dd"));
    this.traffic = new Chart({
      title: "Sent and received by round", xTitle: "round", x: (row) => row.round, format: bytes,
      series: [
        { title: "up, from the clients", ink: "participating", value: (row) => row.bytes_up },
        { title: "down, to the clients", ink: "new", dash: [6, 4], value: (row) => row.bytes_down },
      ],
    });
    this.time = new Chart({
      title: "Time by round", xTitle: "round", x: (row) => row.round, format: (value) => `${Number(value.toPrecision(3))} s`,
      series: [{ title: "a round with its evaluation", ink: "participating", value: (row) => row.seconds }],
    });
    this.loss = new Chart({
      title: "Training loss by round", xTitle: "round", x: (row) => row.round, format: (value) => number(value, "loss"),
      series: [{ title: "mean over the clients that replied", ink: "participating", value: (row) => row.loss }],
    });
    this.epsilon = new Chart({
      title: "ε by round", xTitle: "round", x: (row) => row.round, format: (value) => String(Number(value.toPrecision(3))),
      series: [{ title: "spent until then", ink: "participating", value: (row) => row.epsilon }],
    });
    this.charts = [this.epsilon, this.loss, this.traffic, this.time];
    const cards = this.charts.map((chart) => el("section", { class: "card half" }, chart.node));
    [this.epsilonCard] = cards;
    this.node = el("div", { class: "overview" },
      el("section", { class: "card wide full" }, el("h2", {}, "Costs"), el("dl", { class: "tiles" },
        tile("bytes_up", "Received from clients"), tile("bytes_down", "Sent to clients"), tile("seconds", "Time in rounds"),
        tile("gradient_evaluations", "Gradient evaluations"), tile("hvps", "Hessian-vector products"),
        tile("unused", "Replies not used"), tile("dropped", "Not waited for"), tile("simulated", "Simulated time"), tile("parameters", "Numbers in the model"))),
      ...cards);
  }

  update() {
    const { head, points, num_parameters } = this.run.state;
    const { costs } = head;
    setText(this.tiles.bytes_up, told(costs.bytes_up, bytes));
    setText(this.tiles.bytes_down, told(costs.bytes_down, bytes));
    setText(this.tiles.seconds, duration(costs.seconds));
    setText(this.tiles.gradient_evaluations, told(costs.gradient_evaluations, count));
    setText(this.tiles.hvps, told(costs.hvps, count));
    setText(this.tiles.unused, costs.rejected === null ? "withheld" : count(costs.rejected + costs.failed + costs.missing));
    setText(this.tiles.dropped, told(costs.dropped, count));
    setText(this.tiles.simulated, costs.simulated_seconds ? duration(costs.simulated_seconds) : "–");
    setText(this.tiles.parameters, num_parameters ? count(num_parameters) : "–");
    const why = (name) => (withheld(head, name) ? NOT_COVERED : undefined);
    const spent = points.filter((row) => Number.isFinite(row.epsilon));
    this.epsilonCard.hidden = !spent.length;
    this.epsilon.set(spent);
    this.loss.set(points, why("training-loss"));
    this.traffic.set(points, why("participants"));
    this.time.set(points);
  }

  close() { for (const chart of this.charts) chart.close(); }
}

export class Configuration {
  constructor(run) {
    this.run = run;
    this.node = el("section", { class: "card wide" }, el("h2", {}, "Configuration"), this.place = el("div"));
  }

  update() {
    const { options, meanings, engine } = this.run.state;
    const key = JSON.stringify([options, engine]);
    if (this.shown === key) return;
    this.shown = key;
    const sections = new Map();
    for (const [name, value] of Object.entries(options)) {
      const section = name.includes(".") ? name.split(".")[0] : "run";
      sections.set(section, [...(sections.get(section) ?? []), [name, value]]);
    }
    const isOwn = ([name, value]) => meanings[name] !== undefined && meanings[name][0] !== value;
    const columns = [
      { title: "option", value: ([name]) => el("code", {}, name) },
      { title: "value", value: (row) => el("span", { class: isOwn(row) ? "own" : "" }, String(row[1]) || "(empty)", isOwn(row) ? el("small", {}, " not the default") : null) },
      { title: "meaning", value: ([name]) => meanings[name]?.[1] ?? "" },
    ];
    const parts = [...sections].map(([section, rows]) => [el("h3", {}, capital(section)), table(`Options of ${section}`, columns, rows, { className: "options cards" })]);
    this.place.replaceChildren(engine ? el("p", { class: "under" }, `Clients are run by: ${engine}`) : "", ...parts.flat());
    if (!sections.size) this.place.replaceChildren(el("p", { class: "empty" }, "The options are known once the run has started."));
  }

  close() {}
}

export class Events {
  constructor(run) {
    this.run = run;
    this.only = el("select", { onchange: () => this.update() }, [["", "all"], ["warning", "warnings"]].map(([value, text]) => el("option", { value }, text)));
    this.list = el("ol", { class: "events", reversed: true });
    this.empty = el("p", { class: "empty" }, "No events yet.");
    this.node = el("section", { class: "card wide" }, el("h2", {}, "Events"),
      el("div", { class: "filters" }, el("label", {}, el("span", {}, "Show"), this.only)), this.empty, this.list);
  }

  update() {
    const lines = this.run.state.lines.filter((line) => !this.only.value || line.level === this.only.value).slice(-300).reverse();
    this.empty.hidden = lines.length > 0;
    keyed(this.list, lines, (line) => line.number, (line) => {
      const node = el("li", {}, el("time", {}, clock(line.time)),
        el("span", { class: "what" }, line.level === "warning" ? "▲ " : "", line.client ? el("strong", {}, line.client, " ") : null, line.text));
      setClass(node, line.level);
      return node;
    });
  }

  close() {}
}
