// Stopping a run: asked twice, and only with the token.

import { enter, post, session } from "./api.js";
import { el, setText } from "./dom.js";

export function askToStop(name) {
  const said = el("p", { class: "error", role: "alert" });
  const token = el("input", { type: "password", id: "stop-token", autocomplete: "off", required: true });
  const needs = session.csrf ? null : el("div", { class: "field" }, el("label", { for: "stop-token" }, "Token that the terminal shows"), token);
  const confirm = el("button", { type: "submit", class: "danger" }, "Stop the run");
  const form = el("form", { method: "dialog" },
    el("h2", { id: "stop-title" }, "Stop this run?"),
    el("p", {}, "The present round is finished. What there is then is written to the run's folder, and the run can go on later with --resume."),
    needs, said,
    el("div", { class: "buttons" }, el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Let it go on"), confirm));
  const dialog = el("dialog", { "aria-labelledby": "stop-title", onclose: () => dialog.remove() }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    confirm.disabled = true;
    try {
      if (!session.csrf) await enter(token.value);
      await post(`/api/runs/${encodeURIComponent(name)}/stop`);
      dialog.close();
    } catch (error) {
      setText(said, error.message);
      confirm.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
}
