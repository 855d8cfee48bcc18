// What the pages do more where there is JavaScript: refresh themselves, draw plots, answer keys.
"use strict";

const byId = (id) => document.getElementById(id);

// Live: the part of a page with the id "live" asks for itself again, while nobody is busy with it.

const OFF = "pgworkflows-live-off";
const remembered = {
  get: () => { try { return sessionStorage.getItem(OFF) !== null; } catch { return false; } },
  set: (off) => { try { off ? sessionStorage.setItem(OFF, "1") : sessionStorage.removeItem(OFF); } catch { /* no storage: for this page only */ } },
};
let off = remembered.get();

function busy(part) {
  const selected = window.getSelection();
  return part.querySelector("input:checked, details.act[open]") !== null
    || (part.contains(document.activeElement) && document.activeElement.matches("input, textarea, select"))
    || (selected !== null && !selected.isCollapsed && part.contains(selected.anchorNode));
}

// What takes the server long is asked for less often, and never twice at a time.
let asked = Date.now(), took = 0, waiting = false, answers = true;
document.addEventListener("htmx:beforeRequest", () => { waiting = true; });
document.addEventListener("htmx:afterRequest", ({ detail }) => {
  waiting = false;
  took = Date.now() - asked;
  answers = detail.successful === true;
  showSwitch();
});

// Whoever may look no longer, say because a session has ended, is not answered with the page, but perhaps led to a log-in:
// the whole page is asked for again, so that the visitor is led there, and back.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr } = event.detail;
  if ([401, 403].includes(xhr.status) || (xhr.status < 400 && !xhr.responseText.includes('id="live"'))) {
    event.detail.shouldSwap = false;
    location.reload();
  }
});

function refresh() {
  const part = byId("live");
  if (part === null || !part.dataset.live || off || document.hidden) return;
  if (waiting || Date.now() - asked < Math.max(1000 * Number(part.dataset.live), 10 * took) || busy(part)) return;
  asked = Date.now();
  htmx.trigger(part, "live");
  drawPlots();
}

function showSwitch() {
  const button = byId("live-switch");
  if (button === null) return;
  button.hidden = false;
  button.setAttribute("aria-pressed", String(!off));
  button.textContent = off ? "Live: off" : answers ? "Live: on" : "Live: no answer";
}

function toggleLive() {
  off = !off;
  remembered.set(off);
  showSwitch();
}

const FOCUSABLE = "#live a, #live button, #live summary, #live [tabindex]";

// What tells an element from others, also in the page that takes this one's place: several links may lead to one run.
function nameOf(element) {
  const key = element.matches("summary") ? element.parentElement.dataset.key : undefined;
  return [element.tagName, element.getAttribute("href"), key ?? element.getAttribute("aria-label") ?? element.textContent.trim()].join(" ");
}

function namesakes(name) {
  return [...document.querySelectorAll(FOCUSABLE)].filter((each) => nameOf(each) === name);
}

// What a refresh must not change: which details are open, where the focus is, which row is meant, how far one has scrolled.
let kept = null;

function keep() {
  const active = document.activeElement;
  const name = active !== null && active.matches(FOCUSABLE) ? nameOf(active) : null;
  kept = {
    open: new Map([...document.querySelectorAll("#live details[data-key]")].map((each) => [each.dataset.key, each.open])),
    row: rows().findIndex((row) => row.classList.contains("meant")),
    name,
    number: name === null ? -1 : namesakes(name).indexOf(active),
    left: [...document.querySelectorAll("#live .scroll")].map((each) => each.scrollLeft),
  };
}

function restore() {
  if (kept === null) return;
  for (const each of document.querySelectorAll("#live details[data-key]")) {
    if (kept.open.has(each.dataset.key)) each.open = kept.open.get(each.dataset.key);
  }
  document.querySelectorAll("#live .scroll").forEach((each, at) => { each.scrollLeft = kept.left[at] ?? 0; });
  if (kept.row >= 0) rows()[kept.row]?.classList.add("meant");
  if (kept.name !== null) {
    const found = namesakes(kept.name);
    (found[kept.number] ?? found[0])?.focus({ preventScroll: true });
  }
}

// Rows, for keys.

function rows() {
  return [...document.querySelectorAll("tr[data-row]")];
}

function move(by) {
  const all = rows();
  if (all.length === 0) return;
  const now = all.findIndex((row) => row.classList.contains("meant"));
  const next = all[now < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(now + by, 0), all.length - 1)];
  all.forEach((row) => row.classList.remove("meant"));
  next.classList.add("meant");
  next.scrollIntoView({ block: "nearest" });
  (next.querySelector("a.id") ?? next.querySelector("a"))?.focus({ preventScroll: true });
}

const meant = () => document.querySelector("tr.meant");
const follow = (selector) => document.querySelector(selector)?.click();
let going = 0;

const KEYS = {
  "/": () => { byId("search")?.focus(); byId("search")?.select(); },
  "?": () => follow("header nav a[href$='/help']"),
  j: () => move(1),
  k: () => move(-1),
  x: () => { const box = meant()?.querySelector("input[name=run]"); if (box) box.checked = !box.checked; },
  n: () => follow("nav.pages a[rel=next]"),
  p: () => follow("nav.pages a[rel=prev]"),
  l: () => toggleLive(),
  g: () => { going = Date.now(); },
};
const PLACES = { o: "a.brand", r: "header nav a[href$='/runs']", s: "header nav a[href$='/schedules']" };

// Out of a form that has opened over the page, back to what opened it; or out of a field.
function leave(place, typing) {
  const opened = place.closest("details.act[open]");
  if (opened !== null) {
    opened.open = false;
    opened.querySelector("summary").focus();
  } else if (typing) {
    place.blur();
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]), textarea, select, [contenteditable]");
  if (event.key === "Escape") leave(event.target, typing);
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const place = Date.now() - going < 1500 ? PLACES[event.key] : undefined;
  going = 0;
  if (place !== undefined) {
    follow(place);
  } else if (Object.hasOwn(KEYS, event.key)) {
    KEYS[event.key]();
  } else {
    return;
  }
  event.preventDefault();
});

// Plots. Their numbers come from the server; the same stand in a table beside them.

const made = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function plot(place, numbers) {
  const names = place.dataset.series.split(" ");
  const width = () => Math.max(200, place.clientWidth);
  const at = (seconds) => {
    const text = new Date(seconds * 1000).toISOString();
    return text.slice(11, 16) === "00:00" ? text.slice(5, 10) : text.slice(11, 16);
  };
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  const options = {
    width: width(), height: 150, tzDate: (s) => uPlot.tzDate(new Date(s * 1000), "UTC"),
    legend: { live: true }, cursor: { y: false, drag: { x: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(high, Number(place.dataset.least)) * 1.05] } },
    axes: [{ ...axis, values: (_, splits) => splits.map(at) }, { ...axis, size: 46 }],
    series: [{ value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" }, ...names.map((name) => ({
      label: name.replace("_", " ").replace("p95", "95 %"), stroke: colour(`--${name}`), width: 1.5,
      points: { show: !names.includes("started"), size: 4 },
      value: (_, value) => (value === null || value === undefined ? "–" : String(Math.round(value * 1000) / 1000)),
    }))],
  };
  const drawn = new uPlot(options, [numbers.at, ...names.map((name) => numbers[name])], place);
  made.push({ drawn, place, names, width });
}

// None where there is no answer, or another one: the refresh of the page deals with that.
async function numbersAt(address) {
  try {
    const answer = await fetch(address, { headers: { Accept: "application/json" } });
    return answer.ok && answer.headers.get("Content-Type") === "application/json" ? await answer.json() : null;
  } catch {
    return null;
  }
}

async function drawPlots() {
  const places = [...document.querySelectorAll("[data-plot]")];
  if (places.length === 0 || typeof uPlot === "undefined") return;
  const numbers = await numbersAt(places[0].dataset.plot);
  if (numbers === null) return;
  if (made.length === 0) {
    places.forEach((place) => plot(place, numbers));
  } else {
    made.forEach(({ drawn, names }) => drawn.setData([numbers.at, ...names.map((name) => numbers[name])]));
  }
}

window.addEventListener("resize", () => made.forEach(({ drawn, width }) => drawn.setSize({ width: width(), height: 150 })));

// The page is there.

document.body.addEventListener("htmx:beforeSwap", ({ detail }) => { if (detail.shouldSwap) keep(); });
document.body.addEventListener("htmx:afterSwap", () => { restore(); showTickAll(); });

function showTickAll() {
  const all = byId("tick-all");
  if (all !== null) all.hidden = false;
}

document.addEventListener("change", (event) => {
  if (event.target.id === "tick-all") {
    document.querySelectorAll("input[name=run]").forEach((box) => { box.checked = event.target.checked; });
  }
});

byId("live-switch")?.addEventListener("click", toggleLive);
showSwitch();
showTickAll();
drawPlots();
setInterval(refresh, 500);
