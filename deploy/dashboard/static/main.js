// Where the page begins: who looks on, which page is wanted, and light or dark.

import { begin, enter, get, session } from "./api.js";
import { redrawAll } from "./charts.js";
import { el, setClass, setText } from "./dom.js";
import { ExperimentPage } from "./experiment.js";
import { setShares } from "./format.js";
import { RunPage } from "./run.js";
import { ComparePage, RunsPage } from "./runs.js";

const content = document.getElementById("content");
const spoken = document.getElementById("spoken");
const link = document.getElementById("link-state");
let page = null;

function speak(text) { setText(spoken, text); }

const LINKS = { up: "", lost: "Connection lost, trying again …", over: "The page's process has ended. `nufed dashboard` shows its runs." };

function onLink(state) {
  setText(link, LINKS[state]);
  setClass(link, state === "up" ? "link-state" : `link-state ${state}`);
}

function themeOf() {
  return document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function showTheme() {
  const other = themeOf() === "dark" ? "light" : "dark";
  const button = document.getElementById("theme");
  setText(button, other === "dark" ? "Dark" : "Light");
  button.setAttribute("aria-label", `Use ${other} colours`);
  redrawAll();
}

function switchTheme() {
  const other = themeOf() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = other;
  try { localStorage.setItem("nufed-theme", other); } catch { /* storage may be switched off */ }
  showTheme();
}

function show(next, start) {
  page?.close();
  page = next;
  onLink("up");
  content.replaceChildren(next.node);
  Promise.resolve(start()).catch((error) => {
    if (error.status === 401) { showLogin(); return; }
    content.replaceChildren(el("section", { class: "card" }, el("h1", {}, "That did not work"), el("p", {}, error.message), el("p", {}, el("a", { href: "#/runs" }, "All runs"))));
  });
}

async function route() {
  if (!session.may_read) { showLogin(); return; }
  const [kind, name, part] = location.hash.slice(2).split("/").map((text) => decodeURIComponent(text));
  if (kind === "run" && page instanceof RunPage && page.name === name) { page.show(part); return; }
  if (kind === "run") {
    const next = new RunPage(name, { speak, onLink });
    show(next, async () => { next.show(part); await next.open(); });
  } else if (kind === "compare") {
    const next = new ComparePage(location.hash.slice(2).split("/")[1].split(",").map(decodeURIComponent));
    show(next, () => next.open());
  } else if (kind === "experiment") {
    const next = new ExperimentPage(name);
    show(next, () => next.open());
  } else if (kind === "runs") {
    const next = new RunsPage();
    show(next, () => next.open());
  } else location.replace(await home());
  if (!(page instanceof RunPage)) document.title = "NuFed";
  marked();
}

async function home() {
  if (session.live) return `#/run/${session.live}/overview`;
  const { runs, experiments, is_experiment } = await get("/api/runs");
  if (is_experiment) return `#/experiment/${encodeURIComponent(experiments[0])}`;
  if (runs.length === 1 && !experiments.length) return `#/run/${encodeURIComponent(runs[0].run)}/overview`;
  return "#/runs";
}

function marked() {
  const pages = [...(session.live ? [["This run", `#/run/${session.live}/overview`]] : []), ["Runs", "#/runs"]];
  document.getElementById("pages").replaceChildren(...pages.map(([title, href]) =>
    el("a", { href, "aria-current": location.hash.startsWith(href.replace("/overview", "")) ? "page" : null }, title)));
}

function showLogin() {
  page?.close();
  page = null;
  const said = el("p", { class: "error", role: "alert" });
  const token = el("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const form = el("form", { class: "card login" }, el("h1", {}, "NuFed"),
    el("div", { class: "field" }, el("label", { for: "token" }, "Token that the terminal shows"), token), said,
    el("button", { type: "submit", class: "button" }, "Open the page"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try { await enter(token.value.trim()); await route(); } catch (error) { setText(said, error.message); }
  });
  content.replaceChildren(form);
  token.focus();
}

async function start() {
  document.getElementById("theme").addEventListener("click", switchTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  showTheme();
  setShares((await begin()).shares);
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", "/");
    await enter(token).catch(() => {});
    await begin();
  }
  addEventListener("hashchange", route);
  await route();
}

start().catch((error) => content.replaceChildren(el("p", { class: "loading" }, `The page cannot be shown: ${error.message}`)));
