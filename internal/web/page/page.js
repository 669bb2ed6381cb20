"use strict";
// The status page: asks the daemon each second what is new, keeps an hour of it, and
// draws. Texts of the daemon only ever become text nodes.

const periodMs = 1000, goneAfterMs = 4000, hourS = 3600, openMax = 3, eventsMax = 200;

const known = new Map(); // by UUID: {data, columns, element, ...}
let minutes = 5, since = 0, lastAnswer = 0, failures = 0, host = "", offset = 0, slotS = 5, first = true;

function h(name, attributes, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes || {})) e.setAttribute(k, v);
  e.append(...children);
  return e;
}
const byId = id => document.getElementById(id);
const setText = (e, text) => { if (e.textContent !== text) e.textContent = text; };

// grade is how good a state is: a word for the class, which has a shape and a colour.
function grade(d) {
  if (!d.live) return "idle";
  if (d.safe) return d.stalled ? "bad" : "safe";
  return gradeOfState(d.state);
}
function gradeOfState(state) {
  switch (state) {
  case "protected": case "standby": return "safe";
  case "syncing": case "connecting": case "claiming": case "activating": case "switching": case "ending": case "stopping": return "busy";
  case "waiting": case "handed-over": case "stopped": return "idle";
  case "": return "";
  }
  return "bad"; // alone, orphaned, undecided, fenced, active, failed, and what we do not know
}
const gradeWords = {safe: "safe", busy: "changing", bad: "in trouble", idle: "at rest"};
const gravity = d => ["bad", "busy", "safe", "idle"].indexOf(grade(d));

// glyph is the shape of a grade: a check in a disc, an open half disc, a triangle, a ring.
function glyph(g) {
  const s = svg("svg", {class: "glyph", viewBox: "0 0 20 20", role: "img", "aria-label": gradeWords[g] || ""});
  const colour = {fill: `var(--${g})`}, stroke = {stroke: `var(--${g})`, fill: "none", "stroke-width": 2.4};
  if (g === "safe") s.append(svg("circle", {cx: 10, cy: 10, r: 9, ...colour}), svg("path", {d: "M5.6 10.4l3 3 5.8-6.4", fill: "none", stroke: "var(--card)", "stroke-width": 2.2}));
  else if (g === "busy") s.append(svg("circle", {cx: 10, cy: 10, r: 8, ...stroke}), svg("path", {d: "M10 2a8 8 0 0 1 0 16z", ...colour}));
  else if (g === "bad") s.append(svg("path", {d: "M10 1.5L19 18H1z", ...colour}), svg("path", {d: "M10 7v5.5M10 14.2v2", stroke: "var(--card)", "stroke-width": 2, fill: "none"}));
  else s.append(svg("circle", {cx: 10, cy: 10, r: 7.5, ...stroke}));
  return s;
}

function duration(s) {
  s = Math.max(0, Math.round(s));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
  return Math.floor(s / 86400) + " d " + Math.floor(s % 86400 / 3600) + " h";
}

function makeDomain(d, open) {
  const x = {columns: {at: [], state: []}, glyphOf: ""};
  const number = label => { const b = h("b"); return [b, h("div", {class: "n"}, h("span", {}, label), b)]; };
  x.glyphBox = h("span", {}); x.name = h("span", {class: "name"}); x.stateWord = h("b"); x.stateNote = h("small");
  x.spark = svg("svg", {class: "spark", "aria-hidden": "true"});
  let pause, ack, dirty, held;
  [x.pause, pause] = number("pause p99"); [x.commit, ack] = number("last commit"); [x.rate, dirty] = number("sent"); [x.held, held] = number("held");
  x.summary = h("summary", {}, x.glyphBox, x.name, h("span", {class: "state"}, x.stateWord, x.stateNote), x.spark, pause, ack, dirty, held);
  x.notes = h("ul", {class: "notes"}); x.facts = h("ul", {class: "facts"});
  x.band = svg("svg", {class: "band", role: "img"});
  x.charts = [];
  const grid = h("div", {class: "charts"});
  const chart = (title, key, format, series) => {
    const readout = h("output"), about = h("span", {class: "key"}, key), element = svg("svg", {class: "chart", role: "img", "aria-label": title});
    const figure = h("figure", {}, h("figcaption", {}, h("b", {}, title), readout, about), element);
    grid.append(figure);
    x.charts.push({chart: new Chart(element, readout, about, format), series, figure});
  };
  chart("Pause of the guest", "p99 and median of checkpoints", milliseconds, c => [
    {name: "p99", values: c.pause_p99, line: "s-a", area: "f-a"}, {name: "p50", values: c.pause_p50, line: "thin s-a"}]);
  chart("Latency to the backup", "from a pause on, p99 and median", milliseconds, c => [
    {name: "p99", values: c.ack_p99, line: "s-b", area: "f-b"}, {name: "p50", values: c.ack_p50, line: "thin s-b"}]);
  chart("Dirty rate", "pages of 4 KiB, each second", pages, c => [{name: "", values: c.dirty, line: "s-c", area: "f-c"}]);
  chart("Held output", "age of the oldest frame", milliseconds, c => [{name: "max", values: c.oldest, line: "s-d", area: "f-d"}]);
  chart("Age of the last checkpoint", "that this host has", milliseconds, c => [{name: "max", values: c.commit, line: "s-b", area: "f-b"}]);
  x.nothing = h("p", {class: "nothing"}, "No checkpoints in this time.");
  x.element = h("details", {class: "domain", "data-domain": d.domain}, x.summary,
    h("div", {class: "body"}, x.notes, grid, x.nothing, x.band, x.facts));
  x.element.open = open;
  x.element.addEventListener("toggle", () => drawDomain(x));
  return x;
}

// merge adds what is new to what is known: the last slot is sent again, fuller.
function merge(x, fresh) {
  const c = x.columns;
  for (let i = 0; i < fresh.at.length; i++) {
    let at = c.at.length;
    if (at && c.at[at - 1] === fresh.at[i]) at--;
    else if (at && c.at[at - 1] > fresh.at[i]) continue;
    for (const k of Object.keys(fresh)) (c[k] = c[k] || [])[at] = fresh[k] ? fresh[k][i] : NaN;
  }
  const old = c.at.findIndex(t => t > now() - hourS - slotS);
  if (old > 0) for (const k of Object.keys(c)) c[k].splice(0, old);
}

const now = () => Date.now() / 1000 + offset;

function roleText(d) {
  if (!d.role) return "";
  return d.role === "primary" ? `runs here, backup on ${d.peer || "?"}` : `standby of ${d.peer || "?"}`;
}

function showDomain(x, d) {
  const g = grade(d);
  if (x.glyphOf !== g) { x.glyphBox.replaceChildren(glyph(g)); x.element.className = "domain " + g; x.glyphOf = g; }
  setText(x.name, d.domain);
  setText(x.stateWord, d.live ? (d.stalled ? d.state + ", output waits" : d.state) : "ended");
  setText(x.stateNote, d.sync_done ? `${Math.floor(d.sync_done * 100)} % copied${d.sync_eta_s ? ", about " + duration(d.sync_eta_s) + " left" : ""}` : (d.live ? roleText(d) : "was " + d.state));
  const primary = d.role === "primary" && d.live;
  setText(x.pause, primary && d.pause_p99_ms ? joined(milliseconds(d.pause_p99_ms)) : "–");
  setText(x.commit, d.live && d.commit_age_ms ? joined(milliseconds(d.commit_age_ms)) : "–");
  setText(x.rate, primary && d.rate_bps ? joined(bytes(d.rate_bps)) + "/s" : "–");
  setText(x.held, primary && d.gate ? (d.held_frames ? `${d.held_frames}` : "0") : "–");
  showNotes(x, d);
  showFacts(x, d, primary);
}

function showNotes(x, d) {
  const notes = [];
  if (d.error) notes.push(["bad", d.error]);
  if (d.stalled) notes.push(["bad", d.stalled]);
  for (const w of d.warnings || []) notes.push(["", w]);
  const key = JSON.stringify(notes);
  if (x.notesKey === key) return;
  x.notesKey = key;
  x.notes.replaceChildren(...notes.map(([c, text]) => h("li", {class: c}, text)));
}

function showFacts(x, d, primary) {
  const facts = [["in this state for", duration(now() - d.since_s)], ["generation", String(d.generation)]];
  if (d.arbiter) facts.push(["arbiter", d.arbiter]);
  if (d.memory_bytes) facts.push(["memory", joined(bytes(d.memory_bytes))]);
  if (primary && d.epoch_ms) facts.push(["a checkpoint each", joined(milliseconds(d.epoch_ms))]);
  if (primary && d.reason) facts.push(["pace", d.reason]);
  if (primary && d.gate) facts.push(["output", d.gate]);
  if (primary && d.clock) facts.push(["clock", d.clock + (d.drift_us ? ", " + number(d.drift_us / 1000) + "\u202fms drift" : "")]);
  if (d.failover_ms) facts.push(["last failover took", joined(milliseconds(d.failover_ms))]);
  const key = JSON.stringify(facts);
  if (x.factsKey === key) return;
  x.factsKey = key;
  x.facts.replaceChildren(...facts.map(([k, v]) => h("li", {}, k + " ", h("b", {}, v))));
}

// drawDomain draws what can be seen.
function drawDomain(x) {
  const c = x.columns, to = now(), from = to - minutes * 60;
  const some = k => (c[k] || []).map((v, i) => (c.epochs[i] ? v : NaN));
  if (x.spark.clientWidth && c.epochs) sparkline(x.spark, c.at, some("pause_p99"), from, to, slotS);
  if (!x.element.open || !c.epochs) return;
  const seen = {pause_p50: some("pause_p50"), pause_p99: some("pause_p99"), ack_p50: some("ack_p50"), ack_p99: some("ack_p99"), dirty: some("dirty"),
    oldest: c.oldest.map((v, i) => (c.epochs[i] || v ? v : NaN)),
    commit: c.commit.map((v, i) => (c.role[i] === "backup" && v ? v : NaN))};
  let any = false;
  for (const one of x.charts) {
    const series = one.series(seen), some = series.some(s => s.values.some((v, i) => isFinite(v) && c.at[i] >= from));
    one.figure.hidden = !some;
    any = any || some;
    if (some) one.chart.draw(c.at, series, from, to, slotS);
  }
  x.nothing.hidden = any;
  drawBand(x, from, to);
}

// drawBand shows the states one after the other, with their names where they fit.
function drawBand(x, from, to) {
  const c = x.columns, w = x.band.clientWidth, stretches = [];
  for (let i = 0; i < c.at.length; i++) {
    const end = Math.min(c.at[i] + slotS, to), last = stretches[stretches.length - 1];
    if (end < from || !c.state[i]) continue;
    if (last && last.state === c.state[i] && c.at[i] - last.end < slotS) last.end = end;
    else stretches.push({state: c.state[i], begin: Math.max(c.at[i], from), end});
  }
  const left = 46, px = t => left + (t - from) / (to - from) * (w - left - 6), parts = [svg("text", {x: left - 6, y: 17, "text-anchor": "end"}, "state")];
  for (const s of stretches) {
    const a = px(s.begin), b = Math.max(px(s.end), a + 1);
    parts.push(svg("rect", {class: gradeOfState(s.state), x: a, y: 3, width: b - a, height: 20, rx: 3}, svg("title", {}, `${s.state}, ${clock(s.begin)} to ${clock(s.end)}`)));
    if (b - a > s.state.length * 7 + 8) parts.push(svg("text", {x: a + 6, y: 17}, s.state));
  }
  x.band.replaceChildren(...parts);
  x.band.setAttribute("aria-label", "states: " + stretches.map(s => s.state).join(", "));
}

function showEvents(events) {
  const list = events.slice(-eventsMax).reverse();
  const key = list.length + " " + (list[0] ? list[0].at + list[0].text : "");
  const box = byId("event-list");
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  byId("events").hidden = list.length === 0;
  box.replaceChildren(...list.map(e => {
    const g = e.kind === "state" ? gradeOfState(e.state || "") || "idle" : {stalled: "bad", flowing: "safe", ended: "idle", disk: "bad"}[e.kind] || "idle";
    return h("li", {}, h("time", {datetime: e.at, title: e.at}, clock(Date.parse(e.at) / 1000)), glyph(g), h("b", {}, e.domain || host), h("span", {}, e.text));
  }));
}

function showSummary(domains) {
  const live = domains.filter(d => d.live), count = g => live.filter(d => grade(d) === g).length;
  const parts = [`${live.length} domain${live.length === 1 ? "" : "s"}`];
  for (const g of ["safe", "busy", "bad", "idle"]) if (count(g)) parts.push(`${count(g)} ${gradeWords[g]}`);
  setText(byId("summary"), live.length ? parts.join(" · ") : "");
  document.title = (count("bad") ? `▲ ${count("bad")} · ` : "") + host + " · virt-ft";
}

function show(s) {
  host = s.host; slotS = s.slot_seconds; offset = s.now_s - Date.now() / 1000;
  setText(byId("host"), s.host);
  setText(byId("version"), "virt-ft " + s.version);
  setText(byId("memory"), s.memory ? `${joined(bytes(s.memory.room_bytes))} of memory can still be promised to standbys, ${s.memory.standbys} ${s.memory.standbys === 1 ? "has" : "have"} some` : "");
  const box = byId("domains"), here = new Set();
  let before = null;
  s.domains.sort((a, b) => gravity(a) - gravity(b)); // of one gravity by name, as they came
  for (const d of s.domains) {
    here.add(d.uuid);
    let x = known.get(d.uuid);
    if (!x) known.set(d.uuid, x = makeDomain(d, s.domains.length <= openMax));
    merge(x, d.slots);
    showDomain(x, d);
    const next = before ? before.nextSibling : box.firstChild;
    if (next !== x.element) box.insertBefore(x.element, next);
    before = x.element;
    drawDomain(x);
  }
  for (const [uuid, x] of known) if (!here.has(uuid)) { x.element.remove(); known.delete(uuid); }
  byId("none").hidden = s.domains.length > 0;
  showSummary(s.domains);
  showEvents(s.events);
  since = Math.floor(s.now_s) - 2 * slotS;
}

function showAlive(ok, why) {
  const e = byId("alive");
  e.className = ok ? "" : "gone";
  document.body.classList.toggle("gone", !ok);
  setText(e, ok ? "live" : `the daemon on ${host || "this host"} does not answer${lastAnswer ? " since " + clock(lastAnswer / 1000 + offset) : ""}${why ? " (" + why + ")" : ""}`);
}

async function ask() {
  try {
    const r = await fetch("status.json?since=" + since, {cache: "no-store", signal: AbortSignal.timeout(goneAfterMs)});
    if (!r.ok) throw new Error("HTTP " + r.status);
    const s = await r.json();
    lastAnswer = Date.now();
    failures = 0;
    show(s);
    showAlive(true);
  } catch (e) {
    if (first || ++failures > 1 || Date.now() - lastAnswer > goneAfterMs) showAlive(false, e.message.startsWith("HTTP") ? e.message : "");
    if (lastAnswer) since = Math.max(0, Math.floor(lastAnswer / 1000 + offset) - 2 * slotS);
  }
  first = false;
  setTimeout(ask, document.hidden ? 5 * periodMs : periodMs);
}

byId("range").addEventListener("click", e => {
  const m = Number(e.target.dataset && e.target.dataset.minutes);
  if (!m) return;
  minutes = m;
  for (const b of byId("range").children) b.setAttribute("aria-pressed", String(b === e.target));
  for (const x of known.values()) drawDomain(x);
});
addEventListener("resize", () => { for (const x of known.values()) drawDomain(x); });
ask();
