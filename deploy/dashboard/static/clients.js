// The clients, a page at a time: sorted and filtered by the server, so that thousands of them cost the browser nothing.

import { get } from "./api.js";
import { el, keyed, setClass, setText } from "./dom.js";
import { NOT_COVERED, ago, bytes, clock, count, duration, number, withheld } from "./format.js";

const STATES = { working: ["▶", "working"], idle: ["●", "idle"], left: ["○", "left"] };
const COLUMNS = [
  ["name", "Name"], ["state", "State"], ["group", "Group"], ["connected_since", "Connected since"], ["last_seen", "Last seen"],
  ["rounds", "Rounds"], ["bytes_up", "Up"], ["bytes_down", "Down"], ["train_seconds", "Last training"],
  ["before", "Before"], ["after", "After"], ["rejections", "Not used"],
];
const NUMBERS = new Set(["rounds", "bytes_up", "bytes_down", "train_seconds", "before", "after", "rejections"]);

export class Clients {
  constructor(run) {
    this.run = run;
    this.query = { q: "", group: "", state: "", sort: "name", order: "asc", page: 0 };
    this.seen = null;
    const search = el("input", { type: "search", placeholder: "Name or reason", "aria-label": "Find clients by name or reason",
      oninput: () => this.ask({ q: search.value, page: 0 }) });
    const choice = (key, label, options) => el("label", {}, el("span", {}, label),
      el("select", { onchange: (event) => this.ask({ [key]: event.target.value, page: 0 }) },
        options.map(([value, text]) => el("option", { value }, text))));
    this.summary = el("p", { class: "under", role: "status" });
    this.heads = new Map();
    const head = el("tr", { role: "row" }, COLUMNS.map(([key, title]) => {
      const button = el("button", { type: "button", onclick: () => this.sort(key) }, title, el("span", { class: "order", "aria-hidden": "true" }));
      const cell = el("th", { scope: "col", role: "columnheader", class: NUMBERS.has(key) ? "number" : "" }, button);
      this.heads.set(key, cell);
      return cell;
    }));
    this.body = el("tbody", { role: "rowgroup" });
    this.previous = el("button", { type: "button", class: "quiet", onclick: () => this.ask({ page: this.query.page - 1 }) }, "Previous");
    this.next = el("button", { type: "button", class: "quiet", onclick: () => this.ask({ page: this.query.page + 1 }) }, "Next");
    this.pageText = el("span", { class: "under" });
    this.node = el("section", { class: "card wide" }, el("h2", {}, "Clients"),
      el("div", { class: "filters" }, search,
        choice("group", "Group", [["", "all"], ["participating", "participating"], ["new", "new"]]),
        choice("state", "State", [["", "all"], ["working", "working"], ["idle", "idle"], ["left", "left"], ["rejected", "with replies not used"]]),
        this.sortChoice()),
      this.summary,
      el("div", { class: "scrolls" }, el("table", { role: "table", class: "clients cards" },
        el("caption", { class: "unseen" }, "Clients of this run"),
        el("thead", { role: "rowgroup" }, head), this.body)),
      el("div", { class: "pager" }, this.previous, this.pageText, this.next));
  }

  sortChoice() {
    this.sorting = el("select", { onchange: () => this.ask({ sort: this.sorting.value, page: 0 }) },
      COLUMNS.map(([key, title]) => el("option", { value: key }, title)));
    return el("label", { class: "narrow-only" }, el("span", {}, "Sort by"), this.sorting);
  }

  sort(key) {
    const descending = this.query.sort === key ? this.query.order !== "desc" : NUMBERS.has(key);
    this.ask({ sort: key, order: descending ? "desc" : "asc", page: 0 });
  }

  ask(changes) {
    Object.assign(this.query, changes);
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.load(), 120);
  }

  update() {
    const { head } = this.run.state;
    if ((head.clients_version === this.seen && !this.wasReading) || this.loading) return;
    this.wasReading = head.is_reading;
    const wait = 1500 - (Date.now() - (this.at ?? 0));
    if (wait <= 0) this.load();
    else if (!this.waiting) this.waiting = setTimeout(() => { this.waiting = null; this.load(); }, wait);
  }

  async load() {
    if (!this.run.state) return;
    if (this.loading) { this.again = true; return; }
    this.loading = true;
    try {
      const found = await get(`/api/runs/${encodeURIComponent(this.run.name)}/clients?${new URLSearchParams(this.query)}`);
      if (!this.closed) this.show(found);
    } catch (error) {
      setText(this.summary, error.message);
    }
    this.loading = false;
    this.at = Date.now();
    if (this.again) { this.again = false; this.load(); }
  }

  show(found) {
    this.seen = found.version;
    this.query.page = found.page;
    setText(this.summary, found.total === 0 ? (withheld(this.run.state.head, "participants") ? `Who takes part: ${NOT_COVERED}` : "No clients.") : `${count(found.total)} ${found.total === 1 ? "client" : "clients"}`);
    setText(this.pageText, `Page ${found.page + 1} of ${found.pages}`);
    this.previous.disabled = found.page === 0;
    this.next.disabled = found.page >= found.pages - 1;
    this.previous.parentNode.hidden = found.pages < 2;
    this.sorting.value = this.query.sort;
    for (const [key, cell] of this.heads) {
      const order = key === this.query.sort ? (this.query.order === "desc" ? "descending" : "ascending") : "none";
      if (cell.getAttribute("aria-sort") !== order) cell.setAttribute("aria-sort", order);
      setText(cell.querySelector(".order"), { ascending: " ↑", descending: " ↓", none: "" }[order]);
    }
    keyed(this.body, found.rows, (row) => row.name, () => this.make(), (node, row) => this.change(node, row));
  }

  make() {
    return el("tr", { role: "row" }, COLUMNS.map(([key, title], index) => el(index === 0 ? "th" : "td", {
      scope: index === 0 ? "row" : null, role: index === 0 ? "rowheader" : "cell", "data-label": title,
      class: `${NUMBERS.has(key) ? "number" : ""} c-${key}` })));
  }

  change(node, row) {
    const { measure } = this.run.state.head;
    const [mark, word] = STATES[row.state];
    const shown = {
      ...row, state: `${mark} ${word}`, group: row.group || "–", connected_since: clock(row.connected_since),
      last_seen: ago(row.last_seen), rounds: count(row.rounds), bytes_up: row.bytes_up ? bytes(row.bytes_up) : "–",
      bytes_down: row.bytes_down ? bytes(row.bytes_down) : "–",
      train_seconds: row.train_seconds === null ? "–" : duration(row.train_seconds),
      before: number(row.before, measure), after: number(row.after, measure),
    };
    setClass(node, row.rejections ? "troubled" : row.state);
    COLUMNS.forEach(([key], index) => {
      if (key === "rejections") this.reasons(node.children[index], row);
      else setText(node.children[index], shown[key]);
    });
  }

  reasons(cell, row) {
    const text = row.rejections ? String(row.rejections) : "0";
    const key = `${text} ${JSON.stringify(row.reasons)}`;
    if (cell.dataset.shown === key) return;
    cell.dataset.shown = key;
    if (!row.reasons.length) { cell.replaceChildren(text); return; }
    const open = cell.querySelector("details")?.open;
    cell.replaceChildren(el("details", { open }, el("summary", {}, text, el("span", { class: "unseen" }, ` replies of ${row.name} not used: show why`)),
      el("ul", {}, [...row.reasons].reverse().map(([round, reason]) => el("li", {}, `round ${round}: ${reason}`)))));
  }

  close() { this.closed = true; clearTimeout(this.typing); clearTimeout(this.waiting); }
}
