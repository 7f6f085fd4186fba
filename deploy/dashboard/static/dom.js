// Making and changing elements. Whatever comes from elsewhere becomes text, never markup.

export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

export function setText(node, text) {
  const shown = String(text);
  if (node.textContent !== shown) node.textContent = shown;
}

export function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

// Brings a list of children in line with items: those that stay are changed in place, and keep focus and selection.
export function keyed(parent, items, keyOf, make, change) {
  const there = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = there.get(key);
    if (child) there.delete(key);
    else {
      child = make(item);
      child.dataset.key = key;
    }
    if (child === before) before = before.nextElementSibling;
    else parent.insertBefore(child, before);
    change?.(child, item);
  }
  for (const child of there.values()) child.remove();
}

export function table(caption, columns, rows, { className = "" } = {}) {
  const head = el("tr", {}, columns.map((column) =>
    el("th", { scope: "col", class: column.number ? "number" : "" }, column.title)));
  const body = rows.map((row) => el("tr", {}, columns.map((column, index) => {
    const value = column.value(row);
    const props = { "data-label": column.title, class: column.number ? "number" : "" };
    return index === 0 ? el("th", { scope: "row", ...props }, value) : el("td", props, value);
  })));
  return el("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": caption },
    el("table", { class: className }, el("caption", { class: "unseen" }, caption),
      el("thead", {}, head), el("tbody", {}, body)));
}
