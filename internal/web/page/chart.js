"use strict";
// Charts in SVG. A chart is told its series once for each drawing and keeps nothing
// but where the pointer is.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, ...children) {
  const e = document.createElementNS(SVG, name);
  for (const [k, v] of Object.entries(attributes || {})) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

// ticks are a few round numbers from 0 to the first that is not below most.
function ticks(most) {
  if (!(most > 0)) return [0, 1];
  let step = Math.pow(10, Math.floor(Math.log10(most / 3)));
  for (const f of [1, 2, 5, 10]) if (most / (step * f) <= 3.2) { step *= f; break; }
  const v = [];
  for (let i = 0; i <= Math.ceil(most / step - 1e-9); i++) v.push(i * step);
  return v;
}

// number shows three digits that count.
function number(v) {
  if (!isFinite(v)) return "–";
  if (v === 0) return "0";
  const a = Math.abs(v);
  if (a >= 100) return v.toFixed(0);
  if (a >= 10) return v.toFixed(1).replace(/\.0$/, "");
  if (a >= 0.1) return v.toFixed(2).replace(/0$/, "").replace(/\.0$/, "");
  return v.toFixed(3).replace(/0+$/, "").replace(/\.$/, "");
}

function scaled(v, units, step) {
  let i = 0;
  while (Math.abs(v) >= step && i < units.length - 1) { v /= step; i++; }
  return [number(v), units[i]];
}
const milliseconds = v => (v >= 1000 ? [number(v / 1000), "s"] : [number(v), "ms"]);
const bytes = v => scaled(v, ["B", "KiB", "MiB", "GiB", "TiB"], 1024);
const pages = v => scaled(v, ["", "k", "M"], 1000);
const joined = ([n, u]) => (u ? n + "\u202f" + u : n);

// Chart draws series over time into an <svg class="chart">. A series is
// {values, line, area}: line and area are classes; values of NaN are gaps.
class Chart {
  constructor(element, readout, key, format) {
    this.element = element;
    this.readout = readout; // of the first series, now
    this.key = key; // what is drawn, or under the pointer all series
    this.says = key.textContent;
    this.format = format;
    this.at = null; // pointer, in pixels
    element.addEventListener("pointermove", e => { this.at = e.clientX - element.getBoundingClientRect().left; this.redraw(); });
    element.addEventListener("pointerleave", () => { this.at = null; this.redraw(); });
  }

  draw(times, series, from, to, step) {
    this.last = [times, series, from, to, step];
    this.redraw();
  }

  redraw() {
    if (!this.last) return;
    const [times, series, from, to, step] = this.last;
    const w = this.element.clientWidth, h = this.element.clientHeight;
    if (!w || !h) return;
    const left = 46, right = 6, top = 6, bottom = 18;
    let most = 0;
    for (const s of series) for (let i = 0; i < times.length; i++) if (times[i] >= from && s.values[i] > most) most = s.values[i];
    const marks = ticks(most), high = marks[marks.length - 1];
    const x = t => left + (t - from) / (to - from) * (w - left - right);
    const y = v => h - bottom - v / high * (h - bottom - top);
    const parts = [];
    for (const v of marks) {
      parts.push(svg("line", {class: v ? "grid" : "zero", x1: left, x2: w - right, y1: y(v), y2: y(v)}));
      parts.push(svg("text", {x: left - 6, y: y(v) + 4, "text-anchor": "end"}, joined(this.format(v))));
    }
    for (const [t, text, anchor] of this.moments(from, to)) parts.push(svg("text", {x: x(t), y: h - 4, "text-anchor": anchor}, text));
    for (const s of series) for (const run of runs(times, s.values, from, step)) {
      const points = run.map(i => `${x(times[i] + step / 2 > to ? to : times[i] + step / 2).toFixed(1)},${y(s.values[i]).toFixed(1)}`);
      const ends = [points[0].split(",")[0], points[points.length - 1].split(",")[0]];
      if (s.area) parts.push(svg("polygon", {class: "area " + s.area, points: `${ends[0]},${y(0)} ${points.join(" ")} ${ends[1]},${y(0)}`}));
      if (s.line && points.length > 1) parts.push(svg("polyline", {class: "line " + s.line, points: points.join(" ")}));
      if (s.line && points.length === 1) parts.push(svg("circle", {class: s.line.replace(/thin |s-/g, m => (m === "s-" ? "f-" : "")), cx: ends[0], cy: y(s.values[run[0]]), r: 2}));
    }
    let i = times.length - 1;
    if (this.at !== null && times.length) {
      const t = from + (this.at - left) / (w - left - right) * (to - from) - step / 2;
      i = nearest(times, t);
      if (times[i] >= from) parts.push(svg("line", {class: "cross", x1: x(times[i] + step / 2), x2: x(times[i] + step / 2), y1: top, y2: h - bottom}));
    }
    this.element.replaceChildren(...parts);
    const said = s => (s.name ? s.name + " " : "") + joined(this.format(s.values[i]));
    const there = i < 0 || times[i] < from ? [] : series.filter(s => isFinite(s.values[i]));
    this.readout.textContent = there.length ? said(there[0]) : "";
    this.key.textContent = this.at === null || !there.length ? this.says : clock(times[i]) + "  " + there.map(said).join("  ");
  }

  moments(from, to) {
    const minutes = (to - from) / 60;
    const ago = n => (n >= 60 ? n / 60 + " h" : n + " min") + " ago";
    return [[from, ago(Math.round(minutes)), "start"], [(from + to) / 2, ago(Math.round(minutes / 2 * 10) / 10), "middle"], [to, "now", "end"]];
  }
}

// runs are stretches of slots that follow each other and have values.
function runs(times, values, from, step) {
  const all = [];
  let run = null;
  for (let i = 0; i < times.length; i++) {
    if (times[i] < from || !isFinite(values[i])) { run = null; continue; }
    if (run && times[i] - times[i - 1] > step) run = null;
    if (!run) all.push(run = []);
    run.push(i);
  }
  return all;
}

function nearest(times, t) {
  let low = 0, high = times.length - 1;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (times[mid] < t) low = mid + 1; else high = mid;
  }
  return low > 0 && t - times[low - 1] < times[low] - t ? low - 1 : low;
}

// sparkline is a line without anything around it.
function sparkline(element, times, values, from, to, step) {
  const w = element.clientWidth, h = element.clientHeight;
  if (!w) return;
  let most = 0;
  for (let i = 0; i < times.length; i++) if (times[i] >= from && values[i] > most) most = values[i];
  const x = t => (t - from) / (to - from) * w, y = v => h - 2 - (most ? v / most : 0) * (h - 5);
  element.replaceChildren(...runs(times, values, from, step).map(run =>
      svg("polyline", {class: "line s-a", points: run.map(i => `${x(times[i] + step / 2).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" ")})));
}

function clock(t) { return new Date(t * 1000).toLocaleTimeString([], {hour12: false}); }
