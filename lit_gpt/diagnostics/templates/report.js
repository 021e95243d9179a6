"use strict";
const data = JSON.parse(document.getElementById("data").textContent), by = id => document.getElementById(id);
const make = (tag, text, kind) => { const e = document.createElement(tag); e.textContent = text ?? ""; if (kind) e.className = kind; return e; };
const row = (...cells) => { const tr = make("tr"); tr.append(...cells); return tr; };
const COLORS = ["#3d7dca", "#d8602a", "#2f9e6e", "#b04fb8", "#c59a1a", "#5d6fe0", "#d0476f", "#1f9bb0", "#8a6d3b", "#6c7a89"];
const color = i => COLORS[i % COLORS.length];
const swatch = i => { const e = make("span", "", "swatch"); e.style.background = color(i); return e; };
const short = v => v === null || v === undefined ? "–" : Math.abs(v) >= 1e5 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2) : String(+v.toPrecision(5));
const spaced = v => v === null || v === undefined ? "–" : Math.round(v).toLocaleString("en");
const seconds = v => v === null || v === undefined ? "–" : v.toFixed(v < 100 ? 1 : 0);
const UNITS = { loss: "nats per token", top1: "share of targets", top5: "share of targets", bpb: "bits per byte", nats_per_char: "nats per character",
  perplexity: "exp(loss)", lr: "learning rate", grad_norm: "norm before clipping", tokens_per_second: "tokens per second", step_seconds: "seconds per step",
  data_wait: "share of the training time", peak_memory_gb: "GB", mfu: "share of the device's peak" };
const FIRST = ["loss", "top1", "bpb", "nats_per_char", "top5", "perplexity", "lr", "grad_norm"];
const AXES = { steps: "optimizer steps", tokens: "training tokens", seconds: "seconds of training, validations left out" };
const DASHES = { val: [], train_eval: [7, 4], train: [2, 3], test: [10, 3, 2, 3] };
const state = { axis: "steps", folded: data.lines.some(l => l.run === null), hidden: new Set() };

function named(i) { const cell = make("td", "", "text"); cell.append(swatch(i), data.settings[i].name); return cell; }
function head(...names) { return row(...names.map((n, i) => make("th", n, i && !["device", "notes", "setting"].includes(n) ? "" : "text"))); }

function tables() {
  const runs = data.settings.flatMap((s, i) => s.runs.map(r => [i, r]));
  by("about").textContent = `${runs.length} run(s), ${data.settings.length} setting(s). Runs that differ in the seed alone are one setting.`;
  by("legend").textContent = data.legend;
  const metrics = by("metrics"); let last = null;
  metrics.append(head("setting", "step", "text", "loss", "top-1 %", "top-5 %", "parameters"));
  for (const [i, step, split, ...values] of data.rows) {
    const first = i !== last;
    metrics.append(row(first ? named(i) : make("td"), make("td", step), make("td", split),
      ...values.map(v => make("td", v)), make("td", first ? data.settings[i].parameters : "")));
    last = i;
  }
  if (data.differences.length) {
    const top = row(make("th", "setting", "text"));
    data.settings.forEach((s, i) => { const cell = make("th", "", "text"); cell.append(swatch(i), s.name); top.append(cell); });
    by("differences").append(top, ...data.differences.map(([name, ...values]) => row(make("td", name, "mono"), ...values.map(v => make("td", v, "text")))));
  } else by("differences").append(row(make("td", data.settings.length > 1 ? "none that the runs' files tell" : "there is one setting")));
  by("time").append(head("setting", "tokens per second", "training s", "waiting for data", "validation s", "", "device"));
  const most = Math.max(...data.settings.map(s => (s.training_seconds || 0) + (s.validation_seconds || 0)), 1e-9);
  data.settings.forEach((s, i) => {
    const bar = make("div", "", "time"), wait = s.data_wait || 0;
    for (const [kind, t] of [["spent", (s.training_seconds || 0) * (1 - wait)], ["waited", (s.training_seconds || 0) * wait], ["judged", s.validation_seconds || 0]]) {
      const part = make("i", "", kind); part.style.width = 100 * t / most + "%"; bar.append(part);
    }
    const cell = make("td"); cell.append(bar);
    by("time").append(row(named(i), make("td", spaced(s.tokens_per_second)), make("td", seconds(s.training_seconds)),
      make("td", s.data_wait === null ? "–" : (100 * wait).toFixed(1) + " %"), make("td", seconds(s.validation_seconds)), cell, make("td", s.device, "text")));
  });
  by("runs").append(head("run", "setting", "seed", "state", "notes"));
  for (const [i, [name, folder, status, seed, notes]] of runs) {
    const run = make("td", folder, "text mono"); run.title = name;
    by("runs").append(row(run, named(i), make("td", seed), make("td", status), make("td", notes.join("; "), "text note")));
  }
}

function samples() {
  if (!data.samples.length) by("samples").append(make("p", "None of the runs has a samples.jsonl.", "soft"));
  data.samples.forEach(([name, texts], i) => {
    const box = make("details"); box.open = i === 0 && data.samples.length < 3;
    box.append(make("summary", `${name}: ${texts.length} sample(s)`));
    for (const [step, text] of texts) box.append(make("div", `step ${step}`, "soft"), make("pre", text));
    by("samples").append(box);
  });
}

// ---- curves

const shownLines = () => data.lines.filter(l => !state.hidden.has(l.setting) && (state.folded ? l.run === null || (l.folded && alone(l)) : l.run !== null));
const alone = line => !data.lines.some(l => l.setting === line.setting && l.run === null);
const label = line => line.run === null || state.folded ? data.settings[line.setting].name : line.run;
function family(name) {
  const [split, rest] = [name.slice(0, name.indexOf("/")), name.slice(name.indexOf("/") + 1)];
  return name.includes("/") ? (split in DASHES ? [rest, split] : [split, rest]) : [name, ""];
}
function families() {
  const found = new Map();
  for (const line of data.lines) for (const group of line.curves) for (const name of Object.keys(group.values)) {
    const [chart, kind] = family(name);
    if (!found.has(chart)) found.set(chart, new Map());
    found.get(chart).set(kind, name);
  }
  const place = name => { const i = FIRST.indexOf(name); return i < 0 ? FIRST.length : i; };
  return [...found].sort((a, b) => place(a[0]) - place(b[0]));
}
function seriesOf(kinds) {
  const series = [];
  for (const line of shownLines()) for (const [kind, name] of kinds) for (const group of line.curves) {
    const x = group[state.axis], y = group.values[name];
    if (x && y) series.push({ x, y, spread: group.spread[name], kind, line });
  }
  return series;
}
function drawChart(box, title, kinds) {
  box.replaceChildren();
  const tip = make("div", "", "tip"), unit = UNITS[title] || title, series = seriesOf(kinds);
  box.append(make("h3", `${title}${UNITS[title] ? ` (${unit})` : ""}`));
  const names = [...kinds.keys()].filter(Boolean);
  if (names.length) box.append(make("div", names.join(", "), "kinds"));
  if (!series.length) { box.append(make("p", "no values on this axis", "soft")); return null; }
  const parts = [], options = [{ label: AXES[state.axis] }], bands = [];
  for (const s of series) {
    parts.push([s.x, s.y]);
    const several = kinds.size > 1, few = s.x.length < 30;
    const dash = several && DASHES[s.kind] || [], faint = several && s.kind === "train" ? "99" : "";
    options.push({ label: `${label(s.line)} ${s.kind}`, stroke: color(s.line.setting) + faint, width: 1.6, dash, spanGaps: true, points: { show: few, size: 4 }, of: s });
  }
  for (const s of series.filter(s => s.spread)) {
    const edge = sign => s.y.map((y, i) => y === null || s.spread[i] === null ? null : y + sign * s.spread[i]);
    for (const sign of [1, -1]) { parts.push([s.x, edge(sign)]); options.push({ label: "", width: 0, points: { show: false }, spanGaps: true, stroke: "transparent" }); }
    bands.push({ series: [options.length - 2, options.length - 1], fill: color(s.line.setting) + "26" });
  }
  const plot = new uPlot({
    width: box.clientWidth, height: 270, series: options, bands, legend: { show: false }, cursor: { points: { size: 6 }, y: false },
    scales: { x: { time: false } },
    axes: [axis(AXES[state.axis], { space: 60 }), axis(unit, { size: 58 })],
    hooks: { setCursor: [u => tipAt(u, tip)] },
  }, uPlot.join(parts), box);
  plot.over.append(tip);
  return plot;
}
function axis(label, more) {
  const style = getComputedStyle(document.body), stroke = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
  return { label, stroke, grid: { stroke: line, width: 1 }, ticks: { stroke: line }, labelSize: 20, labelFont: "12px sans-serif", font: "11px sans-serif",
    values: (u, v) => v.map(tick), ...more };
}
function tick(v) {
  if (v === null) return "";
  const [size, letter] = [[1e9, "G"], [1e6, "M"], [1e4, "k"]].find(([least]) => Math.abs(v) >= least) || [1, ""];
  return letter ? +(v / (letter === "k" ? 1e3 : size)).toPrecision(4) + letter : short(v);
}
function nearest(u, s) {
  const at = u.data[s], from = u.cursor.idx;
  for (let d = 0; d < at.length; d++) for (const i of [from - d, from + d]) if (at[i] !== null && at[i] !== undefined) return i;
  return null;
}
function tipAt(u, tip) {
  if (u.cursor.idx === null || u.cursor.idx === undefined || u.cursor.left < 0) { tip.style.display = "none"; return; }
  const lines = [];
  u.series.forEach((s, i) => { if (s.of) { const at = nearest(u, i); if (at !== null) lines.push([s, u.data[0][at], u.data[i][at]]); } });
  lines.sort((a, b) => Math.abs(u.valToPos(a[2], "y") - u.cursor.top) - Math.abs(u.valToPos(b[2], "y") - u.cursor.top));
  const shown = lines.slice(0, 8).sort((a, b) => b[2] - a[2]).map(([s, x, y]) => {
    const deviation = s.of.spread ? s.of.spread[s.of.x.indexOf(x)] : null;
    const line = make("div"); line.append(swatch(s.of.line.setting), `${s.of.kind} ${short(y)}${deviation ? " ± " + deviation.toPrecision(2) : ""} at ${short(x)}: ${label(s.of.line)}`);
    return line;
  });
  tip.replaceChildren(...shown, ...(lines.length > 8 ? [make("div", `the 8 nearest of ${lines.length}`, "soft")] : []));
  tip.style.display = "block";
  const right = u.cursor.left > u.over.clientWidth / 2;
  tip.style.left = right ? "4px" : ""; tip.style.right = right ? "" : "4px"; tip.style.top = "4px";
}
let plots = [];
function draw() {
  plots.forEach(p => p && p.destroy());
  const all = families();
  const boxes = all.map(() => make("div", "", "chart"));
  by("charts").replaceChildren(...boxes);
  plots = all.map(([title, kinds], i) => drawChart(boxes[i], title, kinds));
  plots.push(positions());
  if (!all.length) by("charts").append(make("p", "None of the runs has logged a metric.", "soft"));
}
function controls() {
  const choose = make("select"), over = make("label", "over ");
  for (const [name, text] of Object.entries(AXES)) { const o = make("option", text); o.value = name; choose.append(o); }
  choose.id = "axis"; choose.onchange = () => { state.axis = choose.value; draw(); };
  over.append(choose); by("controls").append(over);
  const check = (text, on, change, i) => {
    const box = make("input"), name = make("label"); box.type = "checkbox"; box.checked = on; box.onchange = () => { change(box.checked); draw(); };
    name.append(box, " "); if (i !== undefined) name.append(swatch(i)); name.append(text); by("controls").append(name);
  };
  if (state.folded) check("mean of the seeds, shaded one standard deviation", true, on => state.folded = on);
  data.settings.forEach((s, i) => check(s.name, true, on => on ? state.hidden.delete(i) : state.hidden.add(i), i));
}

// ---- from checkpoints

const settingOf = run => data.settings.findIndex(s => s.runs.some(r => r[0] === run));
function bars(names, shares, most) {
  const table = make("table");
  names.forEach((name, i) => {
    const cell = make("td", "", "text"); cell.style.minWidth = "120px";
    shares[i].forEach((p, k) => { const bar = make("div", "", "bar"); bar.style.cssText = `display:block;height:.55em;width:${110 * p / most}px;background:${k ? "#d8602a" : "#3d7dca"}`; cell.append(bar); });
    table.append(row(make("td", `'${name}'`, "text mono"), ...shares[i].map(p => make("td", (100 * p).toFixed(2) + " %")), cell));
  });
  return table;
}
function positions() {
  if (!data.predictions.length) return null;
  const chart = by("position"), lines = data.predictions.map(p => ({ x: p.positions.map(q => q[0]), y: p.positions.map(q => q[1]), run: p.run }));
  chart.replaceChildren(make("h2", "From the best checkpoints, on the validation text"), make("h3", "loss by position in the context (colours: settings, as above)"));
  const tip = make("div", "", "tip");
  const plot = new uPlot({ width: Math.min(chart.clientWidth, 620), height: 270, legend: { show: false }, scales: { x: { time: false, distr: 3, log: 2 } }, cursor: { y: false },
    series: [{}, ...lines.map(l => ({ label: l.run, stroke: color(settingOf(l.run)), width: 1.6, spanGaps: true, points: { show: true, size: 4 }, of: { kind: "", line: { setting: settingOf(l.run), run: l.run }, x: l.x } }))],
    axes: [axis("tokens before the target"), axis("nats per token", { size: 58 })], hooks: { setCursor: [u => tipAt(u, tip)] } }, uPlot.join(lines.map(l => [l.x, l.y])), chart);
  plot.over.append(tip);
  return plot;
}
function predictions() {
  data.predictions.forEach((p, i) => {
    const box = make("details"), pair = make("div", "", "wide"); box.open = i === 0;
    box.append(make("summary", `${p.run}, ${p.checkpoint}: ${p.targets.toLocaleString("en")} tokens of the validation text`));
    box.append(make("p", `The likeliest next tokens after the text's beginning; '${p.next.truth}' follows:`), make("pre", p.next.after));
    box.append(bars(p.next.likeliest.map(t => t[0]), p.next.likeliest.map(t => [t[1]]), 1));
    box.append(make("p", "The most frequent tokens: their share of the text (blue, first) beside the probability that the model gives them on average (orange, second):"));
    pair.append(bars(p.frequencies.map(f => f[0]), p.frequencies.map(f => [f[1], f[2]]), Math.max(...p.frequencies.flatMap(f => [f[1], f[2]]))));
    box.append(pair); by("predictions").append(box);
  });
}

tables(); samples(); controls(); draw(); predictions();
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
