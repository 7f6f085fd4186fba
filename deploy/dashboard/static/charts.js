// Charts of lines, drawn by uPlot: with a legend that tells lines apart by their dashes, and a table for whom a picture
// says nothing.

import { el, setText, svg, table } from "./dom.js";

const all = new Set();

function resolved(name) {
  const probe = el("span", { class: `ink-${name}` });
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

export function redrawAll() {
  for (const chart of all) chart.draw();
}

export class Chart {
  // options: title, xTitle, x (row -> number), format, series: [{title, ink, dash, width, points, value}], height
  constructor(options) {
    this.options = options;
    this.rows = [];
    this.values = options.series.map(() => el("span", { class: "value" }));
    this.at = el("span", { class: "at" });
    this.place = el("div", { class: "plot", role: "img", "aria-label": `Chart: ${options.title}. The table below has its numbers.` });
    const legend = el("ul", { class: "legend" }, options.series.map((series, index) =>
      el("li", {}, swatch(series), el("span", {}, series.title), this.values[index])));
    this.tablePlace = el("div");
    this.details = el("details", { class: "as-table", ontoggle: () => this.drawTable() },
      el("summary", {}, "Show as a table"), this.tablePlace);
    this.empty = el("p", { class: "empty" });
    this.node = el("figure", { class: "chart" },
      el("figcaption", {}, el("span", { class: "chart-title" }, options.title), this.at, legend),
      this.place, this.empty, this.details);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.place);
    all.add(this);
  }

  // why: what to say where no row has a value; without it the axes are drawn all the same.
  set(given, why) {
    const { series, empty } = this.options;
    const rows = why && !given.some((row) => series.some(({ value }) => Number.isFinite(value(row)))) ? [] : given;
    this.rows = rows;
    setText(this.empty, why ?? empty ?? "Nothing to show yet.");
    this.place.hidden = this.details.hidden = !rows.length;
    this.empty.hidden = Boolean(rows.length);
    if (!rows.length) return;
    if (this.plot && this.plot.series.length === this.options.series.length + 1) this.plot.setData(this.data());
    else this.draw();
    this.showLatest();
    if (this.details.open) this.drawTable();
  }

  data() {
    const { x, series } = this.options;
    return [this.rows.map(x), ...series.map(({ value }) => this.rows.map((row) => value(row) ?? null))];
  }

  draw() {
    this.plot?.destroy();
    this.plot = null;
    const width = this.place.clientWidth;
    if (!this.rows.length || !width) return;
    const { series, format, xTitle, height = 260 } = this.options;
    const [ink, line] = [resolved("muted"), resolved("line")];
    const font = "12px ui-sans-serif, system-ui, sans-serif";
    const axis = { stroke: ink, font, grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const whole = (_plot, splits) => splits.map((value) => (Number.isInteger(value) ? String(value) : ""));
    this.plot = new uPlot({
      width, height,
      padding: [10, 12, 0, 0],
      legend: { show: false },
      cursor: { drag: { x: true, y: false }, points: { size: 7 } },
      scales: { x: { time: false, range: (_plot, low, high) => (low === high ? [low - 0.5, high + 0.5] : [low, high]) } },
      axes: [
        { ...axis, label: xTitle, labelFont: font, labelSize: 22, size: 30, values: whole },
        { ...axis, size: (_plot, values) => 16 + 7 * Math.max(3, ...(values ?? []).map((each) => each.length)),
          values: (_plot, splits) => splits.map((value) => format(value).replace(/\.0(?= )/, "")) },
      ],
      series: [{}, ...series.map((each) => ({
        label: each.title, stroke: resolved(each.ink), width: each.width ?? 2, dash: each.dash,
        spanGaps: true,
        points: { show: Boolean(each.points) || this.rows.length < 40, size: each.points ? 9 : 5,
          fill: each.points === true ? resolved(each.ink) : each.points ? resolved("surface") : undefined },
      }))],
      hooks: { setCursor: [(plot) => this.showAt(plot.cursor.idx)] },
    }, this.data(), this.place);
  }

  resize() {
    const width = this.place.clientWidth;
    if (!width) return;
    if (!this.plot) this.draw();
    else if (Math.abs(this.plot.width - width) > 1) this.plot.setSize({ width, height: this.options.height ?? 260 });
  }

  showAt(index) {
    if (index === null || index === undefined) { this.showLatest(); return; }
    const row = this.rows[index];
    if (!row) return;
    setText(this.at, `${this.options.xTitle} ${this.options.x(row)}`);
    this.options.series.forEach(({ value }, each) => {
      const shown = value(row);
      setText(this.values[each], shown === null || shown === undefined ? "" : this.options.format(shown));
    });
  }

  showLatest() {
    setText(this.at, "");
    this.options.series.forEach(({ value }, each) => {
      const row = this.rows.findLast((candidate) => value(candidate) !== null && value(candidate) !== undefined);
      setText(this.values[each], row ? this.options.format(value(row)) : "");
    });
  }

  drawTable() {
    if (!this.details.open) return;
    const { series, x, xTitle, format, title } = this.options;
    const every = Math.ceil(this.rows.length / 200);
    const rows = this.rows.filter((_row, index) => index % every === 0 || index === this.rows.length - 1);
    const cell = (value) => (value === null || value === undefined ? "–" : format(value));
    const columns = [{ title: xTitle, number: true, value: (row) => String(x(row)) },
      ...series.map((each) => ({ title: each.title, number: true, value: (row) => cell(each.value(row)) }))];
    this.tablePlace.replaceChildren(table(title, columns, rows, { className: "narrow" }));
  }

  close() {
    this.observer.disconnect();
    this.plot?.destroy();
    all.delete(this);
  }
}

export function swatch({ ink, dash, points }) {
  const line = svg("line", { x1: 1, y1: 6, x2: 27, y2: 6, "stroke-width": 2.5, "stroke-dasharray": (dash ?? []).join(" ") });
  const marks = points ? [svg("circle", { cx: 14, cy: 6, r: 4, class: points === true ? "" : "hollow" })] : [];
  const drawn = svg("svg", { viewBox: "0 0 28 12", width: 28, height: 12, class: `swatch ink-${ink}`, "aria-hidden": "true" });
  drawn.append(...(points ? [] : [line]), ...marks);
  return drawn;
}

export const DASHES = [undefined, [7, 4], [2, 4], [10, 4, 2, 4], [14, 5], [4, 3], [8, 3, 3, 3], [1, 3]];
