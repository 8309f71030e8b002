// Blocks for trained models: a verdict, slices before and after on one axis, curves.

const PLOT = 230, LINE = 34;

Object.assign(Report.prototype, {
  verdict({ outcome, sign, headline, note, blocks }) {
    const text = node("div", "", node("strong", "", headline), node("p", "note", note));
    return [node("div", `banner ${outcome}${blocks ? " blocks" : ""}`, node("span", "sign", sign), text)];
  },

  changes({ names, axis, rows, note }) {
    const key = node("p", "legend", node("i", "mark hollow"), names[0], node("i", "mark"), names[1], node("span", "", "with 95 % intervals"));
    const scale = node("div", "plot", drawScale(axis));
    const head = node("div", "change head", node("span", "", "Slice"), node("span", "right", "Images"), scale, node("span", "right", "Old → new"), node("span", "right", "Change"), node("span", "right", "Newly wrong / right"));
    const all = rows.map((row) => this.change(row, axis));
    return [key, node("div", "changes", head, ...all), note ? node("p", "note", note) : ""];
  },

  change({ link, small, outcome, n, old, new: now, moved, turned, sentence, blocks, chosen }, axis) {
    const [text, span, fell] = moved;
    const shown = (one) => one.href ? this.link(one, "", one.text) : one;
    const name = node("span", "name", outcome ? node("i", `sign ${outcome[0]}`, outcome[1]) : "", node("span", "", this.link(link, "", link.text), node("span", `under${blocks ? " alarm" : ""}`, small)));
    const value = (one) => one[0] === null ? "–" : one[0].toFixed(3);
    const cells = [
      name,
      node("span", "right", n),
      node("div", "plot", drawChange(old, now, axis, fell)),
      node("span", "right", `${value(old)} → ${value(now)}`),
      node("span", `right${fell ? " alarm" : ""}`, text, node("span", "under", span)),
      node("span", "right", shown(turned[0]), " / ", shown(turned[1])),
    ];
    if (sentence) cells.push(node("p", "sentence", sentence));
    return node("div", `change${blocks ? " blocks" : ""}${chosen ? " chosen" : ""}`, ...cells);
  },

  curves(data) {
    const place = node("div", "chart");
    this.charts.push([place, data, drawCurves]);
    const key = data.series.flatMap(({ name, line }) => [node("i", `stroke line${line % 5}`), name]);
    return [place, node("p", "legend", ...key)];
  },
});

function across(axis) {
  const [low, high] = axis;
  return (value) => 6 + (PLOT - 12) * (value - low) / (high - low || 1);
}

function drawScale(axis) {
  const x = across(axis), svg = shape("svg", { width: PLOT, height: 14, viewBox: `0 0 ${PLOT} 14` });
  svg.append(
    shape("text", { x: 6, y: 11, class: "tick" }, axis[0].toFixed(2)),
    shape("text", { x: x(axis[1]), y: 11, class: "tick end" }, axis[1].toFixed(2)),
  );
  return svg;
}

function drawChange(old, now, axis, fell) {
  const x = across(axis);
  const svg = shape("svg", { width: PLOT, height: LINE, viewBox: `0 0 ${PLOT} ${LINE}`, role: "img" });
  svg.append(shape("line", { x1: 6, x2: PLOT - 6, y1: LINE - 1, y2: LINE - 1, class: "rule" }));
  [[old, 10, "was"], [now, 23, fell ? "is fell" : "is"]].forEach(([[value, low, high], y, kind]) => {
    if (value === null) return;
    const text = `${kind === "was" ? "old" : "new"} ${value.toFixed(3)}` + (low === null ? "" : ` (95 % ${low.toFixed(3)} to ${high.toFixed(3)})`);
    if (low !== null) svg.append(shape("line", { x1: x(low), x2: x(high), y1: y, y2: y, class: `reach ${kind}` }));
    svg.append(titled(shape("circle", { cx: x(value), cy: y, r: 4, class: `at ${kind}` }), text));
  });
  svg.setAttribute("aria-label", [...svg.querySelectorAll("title")].map((one) => one.textContent).join(", "));
  return svg;
}

function drawCurves({ title, across: unit, series }, width) {
  const every = series.flatMap(({ points }) => points);
  const most = Math.max(1e-9, ...every.map(([, y]) => y)), least = Math.min(...every.map(([, y]) => y));
  const shares = most <= 1 && least >= 0;
  const top = shares ? Math.ceil(most * 10) / 10 || 1 : most * 1.05, bottom = shares && least > 0.5 ? Math.floor(least * 10) / 10 : Math.min(0, least);
  const svg = shape("svg", { width, height: HIGH, viewBox: `0 0 ${width} ${HIGH}`, role: "img", "aria-label": title });
  const y = (value) => TOP + (HIGH - TOP - BOTTOM) * (1 - (value - bottom) / (top - bottom || 1));
  for (let part = 0; part <= 4; part += 1) {
    const value = bottom + (top - bottom) * part / 4;
    svg.append(
      shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "rule" }),
      shape("text", { x: LEFT - 6, y: y(value) + 3.5, class: "tick end" }, value.toFixed(top - bottom >= 10 ? 0 : top - bottom >= 0.35 ? 2 : 3)),
    );
  }
  const xs = every.map(([x]) => x), first = Math.min(...xs), last = Math.max(...xs);
  const x = (value) => last === first ? (LEFT + width - RIGHT) / 2 : LEFT + 6 + (width - LEFT - RIGHT - 12) * (value - first) / (last - first);
  series.forEach(({ name, points, line }) => {
    const kind = `line${line % 5}`;
    svg.append(shape("polyline", { points: points.map(([at, value]) => `${x(at)},${y(value)}`).join(" "), class: `drawn ${kind}` }));
    for (const [at, value] of points) svg.append(titled(shape("circle", { cx: x(at), cy: y(value), r: points.length > 40 ? 1.6 : 2.6, class: `spot ${kind}` }), `${name}, ${unit} ${at}: ${value.toFixed(4)}`));
  });
  const steps = [...new Set(xs)].sort((a, b) => a - b), stride = Math.max(1, Math.ceil(steps.length / Math.max(2, Math.floor(width / 62))));
  steps.forEach((at, place) => { if (place % stride === 0) svg.append(shape("text", { x: x(at), y: HIGH - 5, class: "tick middle" }, String(Math.round(at * 100) / 100))); });
  return svg;
}
