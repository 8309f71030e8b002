// Charts as SVG at the size they are shown: stacked bars, and a share over time with its interval.

const SVG_SPACE = "http://www.w3.org/2000/svg";
const HIGH = 150, LEFT = 40, BOTTOM = 20, TOP = 8, RIGHT = 6;
const number = new Intl.NumberFormat("en-US");
const VERDICTS = ["right", "wrong", "not labelled"];

function shape(tag, attributes, text) {
  const element = document.createElementNS(SVG_SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function titled(element, text) {
  element.append(shape("title", {}, text));
  return element;
}

// 1, 2 or 5 times a power of ten: the largest step that gives at least three ticks.
function step(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, most)));
  return [5, 2, 1, 0.5, 0.2, 0.1].map((one) => one * power).find((one) => most / one >= 3 && (one >= 1 || most <= 1)) ?? 1;
}

function frame(width, name, most, gap, words) {
  const svg = shape("svg", { width, height: HIGH, viewBox: `0 0 ${width} ${HIGH}`, role: "img", "aria-label": name });
  const y = (value) => TOP + (HIGH - TOP - BOTTOM) * (1 - value / most);
  for (let value = 0; value <= most * 1.0001; value += gap) {
    svg.append(
      shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "rule" }),
      shape("text", { x: LEFT - 6, y: y(value) + 3.5, class: "tick end" }, words(value)),
    );
  }
  return [svg, y];
}

// Names below the axis, as many as fit.
function ticks(svg, names, x, width) {
  const every = Math.max(1, Math.ceil(names.length / Math.max(2, Math.floor((width - LEFT) / 62))));
  names.forEach((name, place) => {
    if (place % every === 0 && name) svg.append(shape("text", { x: x(place), y: HIGH - 5, class: "tick middle" }, name));
  });
}

function drawBars({ title, bars }, width) {
  const most = Math.max(1, ...bars.map(({ parts }) => parts.reduce((sum, one) => sum + one, 0)));
  const [svg, y] = frame(width, title, most, step(most), (value) => number.format(value));
  const room = (width - LEFT - RIGHT) / bars.length;
  bars.forEach(({ name, parts }, place) => {
    let under = 0;
    parts.forEach((n, part) => {
      if (!n) return;
      const top = y(under + n);
      const box = { x: LEFT + place * room + Math.min(1, room / 8), y: top, width: Math.max(0.7, room - Math.min(2, room / 4)), height: y(under) - top };
      svg.append(titled(shape("rect", { ...box, class: `part${part}` }), `${name}: ${number.format(n)} ${VERDICTS[part]}`));
      under += n;
    });
  });
  ticks(svg, bars.map((one) => one.tick), (place) => LEFT + (place + 0.5) * room, width);
  return svg;
}

function drawLine({ title, points }, width) {
  const [svg, y] = frame(width, title, 1, 0.25, (value) => `${Math.round(100 * value)} %`);
  const room = (width - LEFT - RIGHT) / points.length, x = (place) => LEFT + (place + 0.5) * room;
  const path = (name) => points.map((one, place) => `${x(place)},${y(one[name])}`);
  svg.append(
    shape("polygon", { points: [...path("low"), ...path("high").reverse()].join(" "), class: "band" }),
    shape("polyline", { points: path("value").join(" "), class: "course" }),
  );
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  points.forEach(({ tick, value, low, high, n }, place) => {
    const text = `${tick}: ${percent(value)} (95 % ${percent(low)} to ${percent(high)}, n ${number.format(n)})`;
    svg.append(
      shape("line", { x1: x(place), x2: x(place), y1: y(low), y2: y(high), class: "whisker" }),
      titled(shape("circle", { cx: x(place), cy: y(value), r: 3.2, class: "dot" }), text),
    );
  });
  ticks(svg, points.map((one) => one.tick), x, width);
  return svg;
}
