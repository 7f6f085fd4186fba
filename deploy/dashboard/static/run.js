// The page of one run: its heading, its panels, and the connection that keeps them up to date.

import { follow, get } from "./api.js";
import { Clients } from "./clients.js";
import { el, setClass, setText } from "./dom.js";
import { STATUS, count, number } from "./format.js";
import { Overview } from "./overview.js";
import { Adaptation, Configuration, Costs, Events } from "./panels.js";
import { askToStop } from "./stop.js";

const PANELS = {
  overview: ["Overview", Overview], clients: ["Clients", Clients], adaptation: ["Adaptation", Adaptation],
  costs: ["Costs", Costs], configuration: ["Configuration", Configuration], events: ["Events", Events],
};
const MOST_POINTS = 2400;

export class RunPage {
  constructor(name, { speak, onLink }) {
    Object.assign(this, { name, speak, onLink });
    this.heading = el("h1", {}, name);
    this.status = el("span", { class: "status" });
    this.about = el("p", { class: "under" });
    this.stop = el("button", { type: "button", class: "danger", hidden: true, onclick: () => askToStop(name) }, "Stop the run");
    this.tabs = el("nav", { class: "tabs", "aria-label": "Parts of this run" }, Object.entries(PANELS).map(([key, [title]]) =>
      el("a", { href: `#/run/${encodeURIComponent(name)}/${key}`, "data-panel": key }, title)));
    this.place = el("div");
    this.node = el("div", {},
      el("div", { class: "heading" }, el("div", {}, el("p", { class: "titles" }, this.heading, this.status), this.about), this.stop),
      this.tabs, this.place);
  }

  async open() {
    const wanted = this.opening = Symbol("opening");
    const state = await get(`/api/runs/${encodeURIComponent(this.name)}`);
    if (this.closed || wanted !== this.opening) return;
    this.state = state;
    this.unfollow?.();
    this.unfollow = follow(this.name, { cursor: state.cursor, epoch: state.head.epoch }, {
      onNews: (news) => this.take(news), onAgain: () => this.open(), onState: this.onLink,
    });
    this.update();
  }

  take(news) {
    const { state } = this;
    state.head = news.head;
    state.cursor = news.cursor;
    state.points.push(...news.points);
    for (const each of news.evaluations) {
      const at = state.evaluations.findLastIndex((known) => known.round <= each.round);
      if (at >= 0 && state.evaluations[at].round === each.round) state.evaluations[at] = each;
      else state.evaluations.splice(at + 1, 0, each);
    }
    state.curves = news.curves ?? state.curves;
    state.lines.push(...news.lines);
    state.lines.splice(0, Math.max(0, state.lines.length - 1000));
    if (state.points.length > MOST_POINTS) { this.open(); return; }
    this.update();
  }

  show(panel) {
    this.panelName = PANELS[panel] ? panel : "overview";
    for (const link of this.tabs.children) {
      if (link.dataset.panel === this.panelName) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.panel?.close();
    this.panel = new PANELS[this.panelName][1](this);
    this.place.replaceChildren(this.panel.node);
    if (this.state) this.panel.update();
  }

  update() {
    const { head, options, can_stop } = this.state;
    const [word, kind] = STATUS[head.status] ?? [head.status, "warn"];
    setText(this.heading, head.name || "The run begins when its clients are there");
    setText(this.status, word);
    setClass(this.status, `status ${kind}`);
    this.stop.hidden = !(can_stop && (head.status === "running" || head.status === "waiting"));
    const clients = options["data.num-clients"] === undefined ? [] : [`${count(options["data.num-clients"])} + ${count(options["data.num-new-clients"])} new clients`];
    const about = [options["data.source"], ...clients, options["model.name"], options["method.estimator"] === undefined ? undefined : `ν = ${options["method.num-inner-steps"]}, ${options["method.estimator"]}`];
    setText(this.about, about.filter(Boolean).join(" · "));
    document.title = `${head.num_rounds ? `${head.round}/${head.num_rounds} ` : ""}${head.name || "NuFed"} · ${word}`;
    this.say(head, word);
    this.panel?.update();
  }

  // Tells a screen reader of a change of state at once, and of progress from time to time.
  say(head, word) {
    if (head.is_reading) return;
    const now = Date.now();
    const isNew = head.status !== this.saidStatus;
    if (!isNew && (head.status !== "running" || now - this.saidAt < 30000)) return;
    this.saidStatus = head.status;
    this.saidAt = now;
    const after = this.state.evaluations.at(-1)?.groups.participating?.after;
    const result = after === undefined ? "" : `, ${head.measure} ${number(after, head.measure)} after fine-tuning`;
    this.speak(`${word}, round ${head.round} of ${head.num_rounds}${result}`);
  }

  close() {
    this.closed = true;
    this.unfollow?.();
    this.panel?.close();
  }
}
