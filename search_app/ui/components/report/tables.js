// Blocks for the page Analyse: findings with their actions, heat tables, reliability curves.

const SQUARE = 250;

Object.assign(Report.prototype, {
  findings({ note, findings, empty }) {
    const all = findings.map(({ link, actions, lead, small, lines, images }) => {
      const title = node("div", "title", this.link(link, "whole", link.text), node("span", "lead", lead), node("span", "note", small));
      const more = node("p", "actions", ...actions.map((to) => this.link(to, "alike", to.text)));
      const text = node("div", "text", title, ...lines.map((one) => node("p", "", one)), more);
      return node("div", "card voice finding", node("div", "faces", ...images.map((id) => thumbnail(id))), text);
    });
    return [...(all.length ? all : [node("p", "", empty)]), note ? node("p", "note", note) : ""];
  },

  heat({ corner, columns, rows, note }) {
    const head = node("tr", "", node("th", "", corner), ...columns.map((name) => node("th", "right", name)));
    const lines = rows.map(({ name, cells }) => {
      const first = node("th", "name", name.href ? this.link(name, "", name.text) : name);
      return node("tr", "", first, ...cells.map((one) => this.cell(one)));
    });
    const element = node("table", "heat", node("thead", "", head), node("tbody", "", ...lines));
    return [node("div", "scroll tall", element), note ? node("p", "note", note) : ""];
  },

  cell(data) {
    if (!data) return node("td", "right none", "·");
    const text = [node("span", "value", data.text), data.small ? node("span", "under", data.small) : ""];
    const element = node("td", `right tone-${data.tone}${data.chosen ? " chosen" : ""}`, ...(data.link ? [this.link(data.link, "cell", ...text)] : text));
    if (data.share !== null) element.style.setProperty("--share", `${Math.round(100 * Math.min(1, Math.max(0, data.share)))}%`);
    if (data.help) element.title = data.help;
    return element;
  },

  reliability(data) {
    const place = node("div", "chart square");
    this.charts.push([place, data, drawReliability]);
    return [place, node("p", "note", data.note)];
  },
});

function drawReliability({ title, points }, width) {
  const side = Math.min(width, 420);
  const svg = shape("svg", { width: side, height: SQUARE, viewBox: `0 0 ${side} ${SQUARE}`, role: "img", "aria-label": title });
  const x = (value) => LEFT + (side - LEFT - RIGHT - 8) * value, y = (value) => TOP + (SQUARE - TOP - 36) * (1 - value);
  for (let tenth = 0; tenth <= 10; tenth += 2) {
    const value = tenth / 10, name = `${10 * tenth} %`;
    svg.append(
      shape("line", { x1: x(0), x2: x(1), y1: y(value), y2: y(value), class: "rule" }),
      shape("text", { x: LEFT - 6, y: y(value) + 3.5, class: "tick end" }, name),
      shape("text", { x: x(value), y: SQUARE - 20, class: "tick middle" }, name),
    );
  }
  svg.append(
    shape("text", { x: x(0.5), y: SQUARE - 4, class: "tick middle" }, "mean confidence"),
    shape("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "ideal" }),
    shape("polyline", { points: points.map((one) => `${x(one.confidence)},${y(one.value)}`).join(" "), class: "course" }),
  );
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  for (const { confidence, value, low, high, n } of points) {
    const text = `confidence ${confidence.toFixed(3)}: ${percent(value)} right (95 % ${percent(low)} to ${percent(high)}, n ${number.format(n)})`;
    svg.append(
      shape("line", { x1: x(confidence), x2: x(confidence), y1: y(low), y2: y(high), class: "whisker" }),
      titled(shape("circle", { cx: x(confidence), cy: y(value), r: 3.5, class: "dot" }), text),
    );
  }
  return svg;
}
