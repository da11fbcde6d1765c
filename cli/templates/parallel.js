// Parallel coordinates: an axis for each setting that differs, and one for the best metric.
const TOP = 42, BOTTOM = 14, SIDE = 56, MOST = 10, APART = 104;

/** The axes of the runs in sight. */
function axes(rows) {
  const counts = new Map();
  for (const run of rows) if (run.metric) counts.set(run.metric, (counts.get(run.metric) ?? 0) + 1);
  const [metric] = [...counts].sort(([, a], [, b]) => b - a)[0] ?? [null];
  const names = board.settings.filter((name) => !["split_seed", "out"].includes(name));
  const found = names.map((name) => ({ name, values: rows.map((run) => valueOf(run, name)) }));
  found.push({ name: metric, values: rows.map((run) => run.metric === metric ? run.value : null) });
  const several = found.filter((axis, i) => i === found.length - 1 || new Set(axis.values.filter((v) => v !== null)).size > 1);
  return [...several.slice(0, -1).slice(0, MOST - 1), ...several.slice(-1)].filter((axis) => axis.name !== null);
}

/** The scale of an axis: of numbers, logarithmic if they span much; of texts, evenly. */
function placed(axis, height) {
  const there = axis.values.filter((v) => v !== null && v !== undefined);
  if (there.every((v) => typeof v === "number")) {
    const [low, high] = there.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    const log = low > 0 && high > 30 * low, few = [...new Set(there)].sort((a, b) => a - b);
    const at = scale(low, high, log, height - BOTTOM, TOP);
    return Object.assign(axis, { at, marks: few.length <= 6 ? few : marks(low, high, log), numeric: true });
  }
  const names = [...new Set(there.map(String))].sort(new Intl.Collator(undefined, { numeric: true }).compare);
  const at = scale(0, Math.max(names.length - 1, 1), false, height - BOTTOM, TOP);
  return Object.assign(axis, { at: (v) => at(names.indexOf(String(v))), marks: names.slice(0, 20), numeric: false });
}

function mixed(from, to, share) {
  const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgb(${parts(from).map((v, i) => Math.round(v + (parts(to)[i] - v) * share)).join(" ")})`;
}

function drawParallel() {
  const rows = view.rows, found = axes(rows), enough = found.length > 1 && rows.length > 1;
  const element = $("parallel");
  $("sweeps").hidden = board.settings.length === 0 || runs.size < 2;
  if ($("sweeps").hidden) return;
  element.style.width = `max(100%, ${found.length * APART}px)`;
  const [pen, width, height] = canvas(element);
  element.found = [];
  element.ariaLabel = enough ? `${rows.length} runs by ${found.map((axis) => axis.name).join(", ")}` : "nothing to compare";
  pen.fillStyle = css("--dim");
  if (!enough) return pen.fillText("two runs that differ are needed here", 8, 20);
  found.forEach((axis, i) => Object.assign(placed(axis, height), { x: SIDE + i * (width - 2 * SIDE) / (found.length - 1) }));
  element.found = found;
  drawLines(pen, rows, found);
  pen.lineWidth = 1;
  found.forEach((axis, i) => {
    pen.strokeStyle = css("--dim");
    pen.beginPath(); pen.moveTo(axis.x, TOP); pen.lineTo(axis.x, height - BOTTOM); pen.stroke();
    pen.textAlign = "center";
    pen.font = "600 12px system-ui, sans-serif";
    written(pen, axis.name, axis.x, i % 2 ? 28 : 12, "--text");
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = i === found.length - 1 ? "left" : "right";
    const side = i === found.length - 1 ? 5 : -5;
    for (const v of axis.marks) written(pen, axis.numeric ? label(v) : v.slice(0, 12), axis.x + side, axis.at(v) + 4, "--dim");
  });
}

/** A text with a rim, so that lines behind it do not blur it. */
function written(pen, text, x, y, colour) {
  Object.assign(pen, { strokeStyle: css("--page"), fillStyle: css(colour), lineWidth: 3 });
  pen.strokeText(text, x, y);
  pen.fillText(text, x, y);
  pen.lineWidth = 1;
}

/** Faint lines first, the best and the chosen ones last. */
function drawLines(pen, rows, found) {
  const way = rows.find((run) => run.metric === found.at(-1).name)?.better === "high" ? -1 : 1;
  const ends = found.at(-1).values, order = rows.map((_, i) => i).filter((i) => ends[i] !== null);
  order.sort((a, b) => way * (ends[b] - ends[a]));
  const share = new Map(order.map((i, rank) => [i, (rank + 1) / order.length]));
  const low = css("--low"), high = css("--high");
  const chosen = rows.map((run, i) => i).filter((i) => view.chosen.includes(rows[i].id));
  for (const i of [...rows.keys()].filter((i) => !share.has(i)).concat(order, chosen)) {
    const own = i !== undefined && view.chosen.includes(rows[i].id);
    pen.strokeStyle = own ? colour(rows[i].id) : mixed(low, high, (share.get(i) ?? 0) ** 3);
    pen.globalAlpha = own ? 1 : rows.length > 200 ? 0.45 : 0.8;
    pen.lineWidth = own ? 2.2 : 1;
    pen.beginPath();
    let on = false;
    for (const axis of found) {
      const v = axis.values[i], seen = v !== null && v !== undefined;
      if (seen) pen[on ? "lineTo" : "moveTo"](axis.x, axis.at(v));
      on = seen;
    }
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

/** A drag along an axis of numbers becomes part of the filter; a click removes it. */
{
  const element = $("parallel");
  let drag = null;
  element.onpointerdown = (event) => {
    const axis = (element.found ?? []).find((a) => Math.abs(a.x - event.offsetX) < 30 && a.numeric);
    if (!axis) return;
    drag = { axis, from: event.offsetY };
    element.setPointerCapture(event.pointerId);
  };
  element.onpointerup = (event) => {
    if (!drag) return;
    const { axis, from } = drag, filter = $("filter");
    drag = null;
    const others = filter.value.split(/\s+/).filter((word) => word && !word.startsWith(`${axis.name}>=`) && !word.startsWith(`${axis.name}<=`));
    if (Math.abs(event.offsetY - from) > 4) {
      const [low, high] = [from, event.offsetY].map(axis.at.back).sort((a, b) => a - b);
      others.push(`${axis.name}>=${Number(low.toPrecision(3))}`, `${axis.name}<=${Number(high.toPrecision(3))}`);
    }
    filter.value = others.join(" ");
    $("grid").scrollTop = 0;
    refresh();
  };
}
