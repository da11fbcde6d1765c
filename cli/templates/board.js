"use strict";
// The table, the filter, a run's own window, and updates. All values are set as text.
const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const board = JSON.parse($("data").textContent);
const runs = new Map(board.runs.map((run) => [run.id, run]));
const view = { rows: [], sort: "best", down: false, chosen: [], here: null, top: -1 };
const ROW = 28, COLOURS = board.colours.filter((colour) => colour !== "#000000");
let curves = null; // parsed when first needed

const column = (run, name) => run.cells[board.columns.indexOf(name)] ?? "";
const isNumber = (text) => text !== "" && !Number.isNaN(Number(text));
const colour = (id) => COLOURS[view.chosen.indexOf(id) % COLOURS.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** What a run has by this name in a filter: a number, a text, or nothing. */
function valueOf(run, name) {
  if (name === "seconds" || name === "time") return run.seconds;
  if (name === "epochs") return run.epochs;
  if (name === "state") return run.state;
  if (name === "best" || name === run.metric) return run.value;
  const text = column(run, name);
  return isNumber(text) ? Number(text) : text === "" ? null : text;
}

/** A function that tells whether a run passes: each word is in its cells, or a comparison holds. */
function passes(filter) {
  const tests = filter.split(/\s+/).filter(Boolean).map((word) => {
    const [, name, sign, wanted] = /^([^<>=]+)(<=|>=|<|>|=)(.+)$/.exec(word) ?? [];
    if (sign === undefined) {
      const lower = word.toLowerCase();
      return (run) => run.cells.some((cell) => cell.toLowerCase().includes(lower));
    }
    const number = isNumber(wanted) ? Number(wanted) : null;
    return (run) => {
      const value = valueOf(run, name);
      if (value === null || value === undefined) return false;
      if (sign === "=") return value === number || String(value) === wanted || column(run, name) === wanted;
      if (typeof value !== "number" || number === null) return false;
      return { "<": value < number, ">": value > number, "<=": value <= number, ">=": value >= number }[sign];
    };
  });
  return (run) => tests.every((test) => test(run));
}

/** Runs by a column; the best metric with the best first, and runs without a value last. */
function sorted(rows, name) {
  const key = (run) => name === "best" ? (run.value === null ? null : run.better === "high" ? -run.value : run.value)
    : name === "run" || name === "folder" || name === "state" ? column(run, name) : valueOf(run, name);
  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  const keyed = rows.map((run) => [key(run), run]);
  keyed.sort(([a, one], [b, other]) => {
    if ((a === null) !== (b === null)) return a === null ? 1 : -1;
    const metrics = name === "best" && one.metric !== other.metric ? order(one.metric ?? "", other.metric ?? "") : 0;
    const by = metrics || (typeof a === "number" && typeof b === "number" ? a - b : order(String(a), String(b)));
    return (view.down ? -by : by) || order(one.id, other.id);
  });
  return keyed.map(([, run]) => run);
}

/** The head and the widths of columns, of what all runs have in them. */
function drawHead() {
  const every = [...runs.values()];
  view.numeric = board.columns.map((name, i) => name === "epochs" || name === "time" ||
    (board.settings.includes(name) && every.every((run) => run.cells[i] === "" || isNumber(run.cells[i]))));
  const widths = board.columns.map((name, i) => {
    const most = Math.max(name.length + 2, ...every.map((run) => run.cells[i].length));
    return (view.numeric[i] ? 1 : 0.9) * Math.min(most, 34) + (i ? 2.4 : 5.2);
  });
  if (innerWidth < 640) widths[0] = Math.min(widths[0], 20); // it stays in sight
  const table = $("table");
  table.style.width = `${widths.reduce((a, b) => a + b)}ch`;
  table.querySelector("colgroup").replaceChildren(...widths.map((width) => {
    const col = make("col");
    col.style.width = `${width}ch`;
    return col;
  }));
  table.querySelector("thead").replaceChildren(make("tr", {}, ...board.columns.map((name, i) => {
    const by = view.sort === name, arrow = by ? (view.down ? " ▾" : " ▴") : "";
    const button = make("button", { textContent: name + arrow, title: `sort by ${name}` });
    button.onclick = () => {
      Object.assign(view, { sort: name, down: by && !view.down });
      drawHead();
      refresh();
    };
    const th = make("th", { scope: "col", className: view.numeric[i] ? "number" : "" }, button);
    if (by) th.ariaSort = view.down ? "descending" : "ascending";
    return th;
  })));
}

/** The rows that are in sight; the others are space. */
function drawRows() {
  const grid = $("grid"), body = grid.querySelector("tbody");
  const first = Math.max(0, Math.floor(grid.scrollTop / ROW) - 10);
  const last = Math.min(view.rows.length, first + Math.ceil(innerHeight / ROW) + 20);
  const space = (count) => {
    const td = make("td", { colSpan: board.columns.length });
    td.style.height = `${count * ROW}px`;
    return count > 0 ? [make("tr", { ariaHidden: "true" }, td)] : [];
  };
  const shown = view.rows.slice(first, last).map((run, i) => drawRow(run, first + i));
  body.replaceChildren(...space(first), ...shown, ...space(view.rows.length - last));
  view.top = first;
}

function drawRow(run, at) {
  const chosen = view.chosen.includes(run.id), here = run.id === view.here;
  const cells = run.cells.map((text, i) => {
    const td = make("td", { textContent: text, title: text, className: view.numeric[i] ? "number" : "" });
    if (board.columns[i] === "state") td.className = run.state;
    if (i === 0) {
      const swatch = make("span", { className: "swatch" });
      if (chosen) swatch.style.background = colour(run.id);
      td.replaceChildren(swatch, make("span", { className: "name", textContent: text }));
    }
    return td;
  });
  const row = make("tr", { id: `row-${at}`, ariaSelected: String(chosen), ariaRowIndex: String(at + 1) }, ...cells);
  row.className = [at % 2 && "odd", chosen && "chosen", here && "here"].filter(Boolean).join(" ");
  row.onclick = (event) => {
    view.here = run.id;
    if (event.target.className === "name") show(run);
    else choose(run.id);
  };
  return row;
}

function choose(id) {
  view.chosen = view.chosen.includes(id) ? view.chosen.filter((other) => other !== id) : [...view.chosen, id];
  drawRows();
  drawCurves();
  drawParallel();
}

/** Move to a row, and keep it in sight. */
function move(to) {
  const at = Math.max(0, Math.min(view.rows.length - 1, to)), grid = $("grid");
  if (!view.rows.length) return;
  view.here = view.rows[at].id;
  const head = grid.querySelector("thead").offsetHeight, top = at * ROW;
  if (top < grid.scrollTop) grid.scrollTop = top;
  if (top + ROW + head > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + ROW + head - grid.clientHeight;
  drawRows();
  $("table").setAttribute("aria-activedescendant", `row-${at}`);
}

/** Filter and sort again, and draw all. */
function refresh() {
  view.rows = sorted([...runs.values()].filter(passes($("filter").value)), view.sort);
  $("count").textContent = `${view.rows.length} of ${runs.size}${board.live ? ", live" : ""}`;
  $("table").ariaRowCount = String(view.rows.length);
  drawRows();
  drawParallel();
}

/** A run's own window: its report if it has one, or what matters of it. */
function show(run) {
  const table = (head, rows) => make("div", { className: "wide" }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { textContent: text })))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", { textContent: text })))))));
  const close = make("button", { textContent: "Close", autofocus: true, onclick: () => $("run").close() });
  const parts = [make("div", { className: "bar" }, make("h2", { id: "title", textContent: run.cells[0] }), close)];
  if (run.report) {
    const link = make("a", { href: run.report, target: "_blank", rel: "noopener", textContent: "its report in a page of its own" });
    const frame = make("iframe", { src: run.report, title: "report" });
    frame.setAttribute("sandbox", "");
    parts.push(make("p", {}, link), frame);
  } else parts.push(make("p", { className: "dim", textContent: `pipe report ${run.id} writes its report, which is then shown here.` }));
  if (run.why) parts.push(make("p", { className: run.state, textContent: `${run.state}: ${run.why}` }));
  const { epochs = [], best = null, values = {} } = series()[run.id] ?? {};
  const ends = [...new Set([epochs.indexOf(best), epochs.length - 1])].filter((at) => at >= 0);
  const number = (value) => value === null || value === undefined ? "" : String(Number(value.toPrecision(4)));
  if (ends.length) parts.push(table(["metric", ...ends.map((at) => `epoch ${epochs[at]}${epochs[at] === best ? ", best" : ""}`)],
    Object.entries(values).map(([name, list]) => [name, ...ends.map((at) => number(list[at]))])));
  const own = board.columns.map((name, i) => [name, run.cells[i]]).filter(([, text]) => text !== "");
  parts.push(table(["this run", ""], own), table(["the same in all runs", ""], Object.entries(board.common)));
  $("run").replaceChildren(...parts);
  $("run").showModal();
}

/** Ask for what changed, and show it. */
async function update() {
  try {
    const answer = await fetch(`runs.json?after=${board.version}`);
    if (!answer.ok) throw new Error(answer.status);
    const news = await answer.json();
    if (news.version !== board.version || view.lost) {
      if (news.whole) runs.clear();
      for (const { curves: own, ...run } of news.runs) {
        runs.set(run.id, run);
        series()[run.id] = own;
      }
      for (const id of news.gone) runs.delete(id);
      view.chosen = view.chosen.filter((id) => runs.has(id));
      for (const name of ["version", "columns", "settings", "common"]) board[name] = news[name];
      view.lost = false;
      drawHead();
      refresh();
      drawCurves();
    }
  } catch {
    view.lost = true;
    $("count").textContent = "the server has ended; this is what it showed last";
  }
  setTimeout(update, 2000);
}

function keys(event) {
  const at = view.rows.findIndex((run) => run.id === view.here), page = Math.floor($("grid").clientHeight / ROW) - 2;
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: Infinity }[event.key];
  if (event.target !== $("table")) return;
  if (to !== undefined) move(to);
  else if (event.key === " " && at >= 0) choose(view.here);
  else if (event.key === "Enter" && at >= 0) show(view.rows[at]);
  else return;
  event.preventDefault();
}

function start() {
  const chooseAll = (ids) => {
    view.chosen = ids;
    refresh();
    drawCurves();
  };
  $("filter").oninput = () => { $("grid").scrollTop = 0; refresh(); };
  $("filter").onkeydown = (event) => { if (event.key === "Enter") { $("table").focus(); move(0); } };
  $("table").onkeydown = keys;
  $("grid").onscroll = () => { if (Math.abs(Math.floor($("grid").scrollTop / ROW) - 10 - view.top) > 5) drawRows(); };
  $("first").onclick = () => chooseAll(view.rows.slice(0, COLOURS.length).map((run) => run.id));
  $("none").onclick = () => chooseAll([]);
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.tagName === "INPUT" || $("run").open) return;
    event.preventDefault();
    $("filter").focus();
  });
  addEventListener("resize", () => { drawHead(); refresh(); drawCurves(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawCurves(); drawParallel(); });
  view.chosen = sorted([...runs.values()], "best").slice(0, 5).map((run) => run.id);
  drawHead();
  refresh();
  document.documentElement.dataset.ready = Math.round(performance.now());
  addEventListener("DOMContentLoaded", () => { startCurves(); if (board.live) setTimeout(update, 2000); });
}
