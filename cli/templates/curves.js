// The curves of the chosen runs over each other, a panel for each metric.
const series = () => curves ??= JSON.parse($("series").textContent);
const smoothing = () => Number($("smooth").value);

/** An exponential mean, corrected for its start; gaps stay. */
function smooth(values, share) {
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null || share === 0) return value;
    mean = share * mean + (1 - share) * value;
    weight = share * weight + 1 - share;
    return mean / weight;
  });
}

/** Marks of an axis from low to high: 1, 2 or 5 by powers of ten, or powers alone. */
function marks(low, high, log) {
  if (log) {
    const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high)), steps = to - from > 3 ? [1] : [1, 2, 5];
    const all = [];
    for (let e = from; e <= to; e++) if ((e - from) % Math.ceil((to - from) / 8 || 1) === 0) all.push(...steps.map((m) => m * 10 ** e));
    const inside = all.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    if (inside.length > 1) return inside;
  }
  const raw = (high - low || Math.abs(high) || 1) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((m) => m * power >= raw) ?? 10), all = [];
  for (let v = Math.ceil(low / step); v * step <= high + step * 1e-9; v++) all.push(v * step);
  return all;
}

const label = (value) => Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential().replace(/(\.\d\d)\d*/, "$1")
  : String(Number(value.toPrecision(4)));

/** A canvas in its size on this screen, cleared. */
function canvas(element) {
  const ratio = devicePixelRatio || 1, width = element.clientWidth, height = element.clientHeight;
  Object.assign(element, { width: width * ratio, height: height * ratio });
  const pen = element.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "11px system-ui, sans-serif";
  pen.lineJoin = "round";
  return [pen, width, height];
}

/** From values to pixels. */
function scale(low, high, log, from, to) {
  const f = log ? Math.log : (v) => v, a = f(low), b = f(high);
  const at = (v) => from + (to - from) * (a === b ? 0.5 : (f(v) - a) / (b - a));
  return Object.assign(at, { low, high, log, back: (pixel) => {
    const v = a + (b - a) * (pixel - from) / (to - from);
    return log ? Math.exp(v) : v;
  } });
}

/** The metrics of chosen runs by their own names, each with its lines. */
function panels() {
  const found = new Map();
  for (const id of view.chosen) {
    const { epochs, values } = series()[id] ?? { values: {} };
    for (const [name, list] of Object.entries(values)) {
      const [, split, metric] = /^(\w+)\/(.*)$/.exec(name);
      if (!found.has(metric)) found.set(metric, []);
      found.get(metric).push({ id, split, epochs, raw: list, values: smooth(list, smoothing()) });
    }
  }
  const usual = ["loss", "accuracy", "r2", "perplexity"], rank = (name) => (usual.indexOf(name) + 1) || 9;
  return [...found].sort(([a], [b]) => rank(a) - rank(b) || (a < b ? -1 : 1));
}

function drawPanel(figure, metric, lines, mark) {
  const element = figure.querySelector("canvas"), [pen, width, height] = canvas(element);
  const logX = $("logx").checked, logY = $("logy").checked;
  const xs = lines.flatMap((line) => line.epochs).filter((x) => !logX || x > 0);
  const ys = lines.flatMap((line) => [...line.raw, ...line.values]).filter((y) => y !== null && (!logY || y > 0));
  const [lowY, highY] = ys.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, -Infinity]);
  const [lowX, highX] = xs.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
  if (!ys.length || !xs.length) {
    figure.lastChild.textContent = "nothing above 0 to show on a log axis";
    return;
  }
  const x = scale(lowX, highX, logX, 46, width - 8), y = scale(lowY, highY, logY, height - 22, 8);
  pen.fillStyle = css("--dim");
  pen.strokeStyle = css("--line");
  for (const v of marks(lowY, highY, logY)) {
    pen.textAlign = "right";
    pen.fillText(label(v), 42, y(v) + 4);
    pen.beginPath(); pen.moveTo(46, y(v)); pen.lineTo(width - 8, y(v)); pen.stroke();
  }
  for (const v of marks(lowX, highX, logX).filter(Number.isInteger)) {
    pen.textAlign = x(v) > width - 20 ? "right" : "center";
    pen.fillText(label(v), x(v), height - 7);
  }
  const both = lines.some((line) => line.split !== "train");
  const trace = (line, values, alpha) => {
    pen.globalAlpha = alpha;
    pen.strokeStyle = pen.fillStyle = colour(line.id);
    pen.setLineDash(line.split === "train" && both ? [5, 4] : []);
    pen.lineWidth = 1.5;
    pen.beginPath();
    let on = false;
    values.forEach((v, i) => {
      const seen = v !== null && (!logY || v > 0) && (!logX || line.epochs[i] > 0);
      if (seen) pen[on ? "lineTo" : "moveTo"](x(line.epochs[i]), y(v));
      on = seen;
      if (seen && values.length === 1) pen.fillRect(x(line.epochs[i]) - 2, y(v) - 2, 4, 4);
    });
    pen.stroke();
  };
  for (const line of lines) {
    if (smoothing()) trace(line, line.raw, 0.25);
    trace(line, line.values, 1);
  }
  pen.globalAlpha = 1;
  if (mark !== undefined) readOut(figure, lines, pen, x, Math.max(lowX, Math.min(highX, mark)), height);
  else figure.lastChild.textContent = "";
  element.ariaLabel = `${metric} by epoch: ${lines.map((l) => `${runs.get(l.id).cells[0]} ${l.split} ends at ${l.raw.at(-1) ?? "no number"}`).slice(0, 8).join(", ")}`;
  figure.x = x;
  figure.at = mark;
}

/** The values at an epoch, below its panel. */
function readOut(figure, lines, pen, x, epoch, height) {
  pen.strokeStyle = css("--dim");
  pen.setLineDash([]);
  pen.beginPath(); pen.moveTo(x(epoch), 8); pen.lineTo(x(epoch), height - 22); pen.stroke();
  const words = lines.map((line) => {
    const at = line.epochs.reduce((best, e, i) => Math.abs(e - epoch) < Math.abs(line.epochs[best] - epoch) ? i : best, 0);
    const value = line.values[at];
    return value === null ? "" : `${runs.get(line.id).cells[0]}${line.split === "train" ? " (training)" : ""} ${label(value)}`;
  });
  figure.lastChild.textContent = `epoch ${Math.round(epoch)}: ${words.filter(Boolean).slice(0, 12).join(" · ")}`;
}

function drawCurves() {
  const all = panels(), old = new Map([...$("panels").children].map((figure) => [figure.dataset.metric, figure]));
  const figures = all.map(([metric, lines]) => {
    const figure = old.get(metric) ?? newPanel(metric);
    figure.lines = lines;
    return figure;
  });
  $("panels").replaceChildren(...figures);
  for (const figure of figures) drawPanel(figure, figure.dataset.metric, figure.lines);
  $("legend").replaceChildren(...view.chosen.slice(0, 24).map((id) => {
    const swatch = make("span", { className: "swatch" }), run = runs.get(id);
    swatch.style.background = colour(id);
    return make("button", { title: `${id}: leave out`, onclick: () => choose(id) }, swatch, `${run.cells[0]} ×`);
  }), ...(view.chosen.length > 24 ? [`and ${view.chosen.length - 24} more`] : []));
  const thinned = view.chosen.some((id) => series()[id]?.every > 1);
  $("note").textContent = !view.chosen.length ? "Choose runs in the table to draw them here."
    : `Held-out data solid, training dashed.${thinned ? " Of long runs, evenly spaced epochs, the best and the last." : ""}`;
}

function newPanel(metric) {
  const element = make("canvas", { tabIndex: 0 });
  const figure = make("figure", {}, make("strong", { textContent: metric }), element, make("figcaption"));
  figure.dataset.metric = metric;
  element.setAttribute("role", "img");
  const draw = (mark) => drawPanel(figure, metric, figure.lines, mark);
  element.onpointermove = (event) => figure.x && draw(figure.x.back(event.offsetX));
  element.onpointerleave = () => draw();
  element.onkeydown = (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way === undefined || !figure.x) return;
    event.preventDefault();
    draw(Math.max(figure.x.low, Math.min(figure.x.high, Math.round(figure.at ?? figure.x.low - way) + way)));
  };
  return figure;
}

function startCurves() {
  for (const id of ["smooth", "logx", "logy"]) $(id).oninput = drawCurves;
  drawCurves();
}
