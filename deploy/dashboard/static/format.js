// Numbers, sizes and times as people read them.

let shares = new Set();

export function setShares(names) { shares = new Set(names); }

export function isShare(measure) {
  return shares.has(measure) || shares.has((measure ?? "").replace(/-[^-]*$/, ""));
}

export function number(value, measure) {
  if (value === null || value === undefined) return "–";
  if (isShare(measure)) return `${(100 * value).toFixed(1)} %`;
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

export function count(value) {
  return Math.round(value ?? 0).toLocaleString("en");
}

// What is shown of a number that ε does not cover: `null` where it is withheld.
export function told(value, format) {
  return value === null ? "withheld" : format(value);
}

export function withheld(head, name) { return (head.withheld ?? []).includes(name); }

export const NOT_COVERED = "Withheld, because ε does not cover it.";

export function bytes(value) {
  let left = value ?? 0;
  for (const unit of ["B", "kB", "MB"]) {
    if (left < 1000) return `${unit === "B" || left >= 10 ? left.toFixed(0) : left.toFixed(1)} ${unit}`;
    left /= 1000;
  }
  return `${left.toFixed(1)} GB`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

export function clock(at) {
  if (!at) return "–";
  const date = new Date(1000 * at);
  const today = new Date().toDateString() === date.toDateString();
  const time = date.toLocaleTimeString("en-GB");
  return today ? time : `${date.toLocaleDateString("en-CA")} ${time}`;
}

export function ago(at) {
  if (!at) return "–";
  const seconds = Date.now() / 1000 - at;
  return seconds < 5 ? "now" : seconds < 86400 ? `${duration(Math.max(0, seconds))} ago` : clock(at);
}

export function moment(text) {
  const at = Date.parse(text ?? "");
  return Number.isNaN(at) ? "–" : clock(at / 1000);
}

export function capital(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : "";
}

export const STATUS = {
  waiting: ["Waiting", "wait"], running: ["Running", "run"], complete: ["Complete", "good"],
  interrupted: ["Interrupted", "warn"], diverged: ["Diverged", "bad"], "nothing-trained": ["Nothing trained", "bad"],
  "budget-spent": ["Privacy budget spent", "warn"], killed: ["Ended without a word", "bad"], damaged: ["Damaged", "bad"],
};
