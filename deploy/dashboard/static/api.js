// What the page asks its own address for, and nothing else.

export const session = { csrf: null, may_read: false };

async function answered(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(body.error ?? `HTTP ${response.status}`), { status: response.status });
  return body;
}

export async function get(path) {
  return answered(await fetch(path, { credentials: "same-origin" }));
}

export async function post(path, body = {}) {
  const headers = { "content-type": "application/json" };
  if (session.csrf) headers["x-nufed-csrf"] = session.csrf;
  return answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body), credentials: "same-origin" }));
}

export async function begin() {
  Object.assign(session, await get("/api/session"));
  return session;
}

export async function enter(token) {
  session.csrf = (await post("/api/login", { token })).csrf;
  session.may_read = true;
}

// Follows a run; a page that nobody looks at lets its connection go, for browsers have few of them.
export function follow(name, { cursor, epoch }, { onNews, onAgain, onState }) {
  let source = null, ended = false, last = cursor, hiding = 0, pause = 2000;
  const open = () => {
    if (ended || source) return;
    const query = new URLSearchParams({ after: last.join(","), epoch });
    source = new EventSource(`/api/runs/${encodeURIComponent(name)}/stream?${query}`);
    source.addEventListener("news", (event) => {
      const news = JSON.parse(event.data);
      last = news.cursor;
      pause = 2000;
      onState("up");
      onNews(news);
    });
    source.addEventListener("again", () => { if (!ended) onAgain(); });
    source.addEventListener("bye", () => { ended = true; close(); onState("over"); });
    source.addEventListener("error", () => {
      if (ended) return;
      onState("lost");
      close();
      setTimeout(open, pause);
      pause = Math.min(2 * pause, 60000);
    });
  };
  const close = () => { source?.close(); source = null; };
  const look = () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(close, 15000);
    else open();
  };
  document.addEventListener("visibilitychange", look);
  open();
  return () => {
    ended = true;
    clearTimeout(hiding);
    document.removeEventListener("visibilitychange", look);
    close();
  };
}
