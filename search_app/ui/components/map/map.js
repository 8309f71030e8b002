// The map: pan, zoom, hover and lasso over the points. drawing.js draws them.
//
// Positions and ids are fetched once (40 bytes a point; positions first, so that the map is visible before the ids come).
// The lasso is a polygon of whole numbers, simplified before it is used: browser and server agree on what is inside.
// Text is set by textContent only.

const SCALE = 100000, MOST_CORNERS = 64, CLICK_PX = 14, HOVER_PX = 10, HOVER_MS = 40, ZOOM_MOST = 400;
// While the view moves on a machine that is slow at drawing, the first of the points stand for all: ids are hashes, so they
// are a fair sample.
const SAMPLE = 60000, SLOW_MS = 70, STILL_MS = 250;
// Told apart by most eyes, on white and on black (after Paul Tol). The first two of a verdict are the theme's.
const CLASSES = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#8877cc", "#99884d", "#dd77bb", "#77aadd"];
const RAMP = ["#3b2f7f", "#31688e", "#26a184", "#8fd744", "#fde725"];

const whole = new Intl.NumberFormat("en-US");

function node(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function ramp(share) {
  const at = Math.min(RAMP.length - 2, Math.floor(share * (RAMP.length - 1))), part = share * (RAMP.length - 1) - at;
  const [from, to] = [rgb(RAMP[at]), rgb(RAMP[at + 1])];
  return from.map((value, place) => Math.round(value + part * (to[place] - value)));
}

// A colour of the theme as RGB: the browser knows every notation.
function themed(root, name) {
  const probe = node("span");
  probe.style.color = `var(${name})`;
  root.append(probe);
  const channels = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return channels;
}

class ImageMap {
  constructor(root) {
    this.root = root;
    this.tool = "move";
    this.hovered = -1;
    this.build();
    this.resize = new ResizeObserver(() => this.fit());
    this.resize.observe(this.stage);
  }

  build() {
    this.legend = node("div", "legend");
    this.tools = node("div", "tools");
    this.tools.setAttribute("role", "group");
    for (const [tool, text, title] of [["move", "Move", "Drag to move; wheel to zoom"], ["lasso", "Lasso", "Draw around images to select them (L, or drag with Shift)"]]) {
      const button = node("button", "", text);
      button.type = "button";
      button.title = title;
      button.dataset.tool = tool;
      button.onclick = () => this.use(tool);
      this.tools.append(button);
    }
    const home = node("button", "", "Whole map");
    home.type = "button";
    home.title = "Show the whole map (0)";
    home.onclick = () => this.home();
    this.clear = node("button", "", "Clear lasso");
    this.clear.type = "button";
    this.clear.title = "Clear the selection (Esc)";
    this.clear.onclick = () => this.say([]);
    this.tools.append(home, this.clear);
    this.note = node("div", "note");
    this.stage = node("div", "stage");
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "application");
    this.stage.setAttribute("aria-label", "Map of images: arrow keys move, plus and minus zoom, Enter selects the middle, L lasso, Escape clears");
    this.canvas = node("canvas", "points");
    this.over = node("canvas", "over");
    this.tip = node("div", "tip");
    this.tip.hidden = true;
    this.face = node("img");
    this.face.alt = "";
    this.face.onerror = () => { this.face.hidden = true; };
    this.face.onload = () => { this.face.hidden = false; this.placeTip(); };
    this.words = node("span");
    this.tip.append(this.face, this.words);
    this.stage.append(this.canvas, this.over, this.tools, this.note, this.tip);
    this.root.replaceChildren(this.stage, this.legend);
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.stage.onpointerdown = (event) => this.down(event);
    this.stage.onpointermove = (event) => this.move(event);
    this.stage.onpointerup = (event) => this.up(event);
    this.stage.onpointercancel = () => { this.drag = null; this.line = null; this.redraw(); };
    this.stage.onpointerleave = () => this.hide();
    this.stage.ondblclick = (event) => { if (!event.target.closest(".tools")) this.zoom(2, this.mouse(event)); };
    this.stage.onkeydown = (event) => this.key(event);
    this.use("move");
  }

  update({ data, setTriggerValue }) {
    this.setTriggerValue = setTriggerValue;
    this.data = data;
    const loaded = `${data.map} ${data.tag}`;
    if (loaded !== this.loaded) {
      if (!this.loaded?.startsWith(data.map)) this.view = null;
      this.loaded = loaded;
      this.load(data.map, data.tag);
    } else this.settle();
  }

  async load(map, tag) {
    this.stopped?.abort();
    this.stopped = new AbortController();
    this.places = this.ids = this.cells = null;
    this.notify("Loading the points …");
    try {
      const response = await fetch(`/v1/map-points/${map}`, { signal: this.stopped.signal });
      if (!response.ok) return this.notify(`The points could not be loaded (status ${response.status}). Reload the page.`);
      if (/"(.*)"/.exec(response.headers.get("ETag") ?? "")?.[1] !== tag) return this.outdated(tag);
      const count = atob(this.data.codes).length, bytes = new Uint8Array(40 * count), reader = response.body.getReader();
      for (let at = 0; ;) {
        const { done, value } = await reader.read();
        if (done) break;
        bytes.set(value, at);
        at += value.length;
        if (!this.places && at >= 8 * count) {
          this.places = new Float32Array(bytes.buffer, 0, 2 * count);
          this.notify("");
          this.ready();
        }
      }
      this.ids = bytes.subarray(8 * count);
      this.root.dataset.ready = count;
    } catch (error) {
      if (error.name !== "AbortError") this.notify("The points could not be loaded. Check that the server is running, and reload the page.");
    }
  }

  // Images were placed after the page was built: it is built again, once.
  outdated(tag) {
    if (this.asked === tag) return this.notify("The map has changed. Reload the page.");
    this.asked = tag;
    return this.setTriggerValue("lasso", { again: true });
  }

  notify(text) { this.note.textContent = text; this.note.hidden = !text; }

  ready() {
    this.cells = new Cells(this.places);
    if (!this.painter) {
      try { this.painter = GLPainter.on(this.canvas); } catch (error) { console.warn(error); }
      if (!this.painter) {
        const plain = node("canvas", "points");
        this.canvas.replaceWith(plain);
        this.canvas = plain;
        this.painter = new PixelPainter(plain);
        this.slow = true;
      }
      this.root.dataset.painter = this.slow ? "2d" : "webgl2";
    }
    this.painter.places(this.places);
    this.settle();
  }

  // Takes colours and lasso from the page.
  settle() {
    if (!this.places) return;
    const { data } = this, codes = Uint8Array.from(atob(data.codes), (letter) => letter.charCodeAt(0));
    if (codes.length * 2 !== this.places.length) return;
    this.codes = codes;
    this.painter.codes(codes);
    this.paintLegend();
    this.choose(this.corners(data.lasso));
    this.fit();
  }

  corners(text) {
    const numbers = text ? text.split(".").map(Number) : [];
    return Array.from({ length: numbers.length / 2 }, (_, at) => [numbers[2 * at] / SCALE, numbers[2 * at + 1] / SCALE]);
  }

  // Even-odd, in double precision from the same single-precision places: as embeddings.maps.maps.inside does it.
  choose(corners) {
    const count = this.places.length / 2, chosen = new Uint8Array(count);
    let many = 0;
    if (corners.length >= 3) {
      const xs = corners.map(([x]) => x), ys = corners.map(([, y]) => y);
      const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
      for (let i = 0; i < count; i++) {
        const x = this.places[2 * i], y = this.places[2 * i + 1];
        if (this.codes[i] === OUTSIDE || x < left || x > right || y < low || y > high) continue;
        let inside = false;
        for (let a = 0, b = corners.length - 1; a < corners.length; b = a++) {
          const [x1, y1] = corners[a], [x2, y2] = corners[b];
          if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
        }
        if (inside) { chosen[i] = 1; many++; }
      }
    }
    this.polygon = corners;
    this.clear.hidden = !corners.length;
    this.root.dataset.chosen = many;
    this.painter.chosen(chosen, corners.length > 0);
    this.redraw();
  }

  colour(code) {
    const { legend } = this.data;
    if (code === NONE || code === OUTSIDE || code === 253) return this.quiet[code];
    if (legend.kind === "range") return ramp(code / 249);
    if (legend.kind === "verdict") return this.verdict[code] ?? this.quiet[NONE];
    return rgb(CLASSES[code % CLASSES.length]);
  }

  paintLegend() {
    const { legend } = this.data, text = themed(this.root, "--st-text-color"), back = themed(this.root, "--st-background-color");
    const mix = (share) => text.map((value, at) => Math.round(share * value + (1 - share) * back[at]));
    this.quiet = { [NONE]: mix(0.42), [OUTSIDE]: mix(0.3), 253: mix(0.6) };
    this.verdict = [themed(this.root, "--st-primary-color"), themed(this.root, "--st-orange-color")];
    this.painter.palette(Array.from({ length: 256 }, (_, code) => this.colour(code)));
    const parts = [];
    if (legend.kind === "range" && legend.ends.length) {
      const bar = node("span", "ramp");
      bar.style.background = `linear-gradient(to right, ${RAMP.join(", ")})`;
      const range = node("span", "entry");
      range.append(node("span", "n", legend.ends[0]), bar, node("span", "n", legend.ends[1]));
      parts.push(range);
    }
    for (const { code, name, n } of legend.entries) {
      const entry = node("span", "entry"), dot = node("span", "dot");
      dot.style.background = `rgb(${this.colour(code).join(" ")})`;
      entry.append(dot, node("span", "name", name), node("span", "n", whole.format(n)));
      parts.push(entry);
    }
    parts.push(node("span", "hint", this.slow ? "drawn slowly: this browser has no WebGL" : "drag moves · wheel zooms · Shift + drag selects · click selects around a point"));
    this.legend.replaceChildren(...parts);
    this.legend.dataset.kind = legend.kind;
  }

  use(tool) {
    this.tool = tool;
    this.stage.dataset.tool = tool;
    for (const button of this.tools.querySelectorAll("[data-tool]")) {
      button.classList.toggle("on", button.dataset.tool === tool);
      button.setAttribute("aria-pressed", button.dataset.tool === tool);
    }
  }

  fit() {
    const width = this.stage.clientWidth, height = this.stage.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width || !this.painter) return;
    for (const canvas of [this.canvas, this.over]) {
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
    }
    const turned = !this.view || this.width !== width || this.height !== height;
    this.width = width;
    this.height = height;
    this.ratio = ratio;
    if (!this.view || (turned && this.isHome)) return this.home();
    this.redraw();
  }

  home() {
    // The middle of what is there, a little air around it.
    let [left, right, low, high] = [1, -1, 1, -1];
    for (let i = 0; i < this.places.length; i += 2) {
      left = Math.min(left, this.places[i]); right = Math.max(right, this.places[i]);
      low = Math.min(low, this.places[i + 1]); high = Math.max(high, this.places[i + 1]);
    }
    const fits = Math.min((this.width - 40) / Math.max(right - left, 0.02), (this.height - 64) / Math.max(high - low, 0.02));
    this.view = { x: (left + right) / 2, y: (low + high) / 2 + 10 / fits, scale: fits };
    this.least = fits / 2;
    this.isHome = true;
    this.redraw();
  }

  redraw() { this.frame ??= requestAnimationFrame((now) => { this.frame = null; this.draw(now); }); }

  // The view changed and is likely to change again.
  moved() {
    this.isHome = false;
    this.moving = true;
    clearTimeout(this.stilling);
    this.stilling = setTimeout(() => { this.moving = false; this.redraw(); }, STILL_MS);
    this.redraw();
  }

  draw(now) {
    if (!this.places || !this.codes || !this.view || !this.width) return;
    const count = this.places.length / 2, zoom = this.view.scale / (2 * this.least);
    // As large as leaves air between points in the whole view, larger when one goes nearer.
    const size = Math.min(12, Math.max(1.6, Math.min(7, 0.55 * Math.sqrt((this.width * this.height) / (8 * count)) + 1.5)) * zoom ** 0.35);
    const sampled = this.moving && this.heavy;
    this.painter.draw({ ...this.view, size, width: this.width, height: this.height, ratio: this.ratio }, sampled ? SAMPLE : count);
    if (!sampled && count > SAMPLE) requestAnimationFrame((then) => { this.heavy = then - now > SLOW_MS; });
    const pen = this.over.getContext("2d");
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    const line = this.line ?? this.polygon?.map((corner) => this.onScreen(corner));
    if (line?.length > 1) {
      pen.beginPath();
      line.forEach(([x, y]) => pen.lineTo(x, y));
      if (!this.line) pen.closePath();
      const ink = `rgb(${themed(this.root, "--st-primary-color").join(" ")})`;
      pen.globalAlpha = 0.1;
      pen.fillStyle = ink;
      pen.fill();
      pen.globalAlpha = 1;
      pen.strokeStyle = ink;
      pen.lineWidth = 2;
      pen.stroke();
    }
    if (!this.tip.hidden) {
      const [x, y] = this.onScreen([this.places[2 * this.hovered], this.places[2 * this.hovered + 1]]);
      pen.beginPath();
      pen.arc(x, y, size / 2 + 4, 0, 2 * Math.PI);
      pen.strokeStyle = `rgb(${themed(this.root, "--st-text-color").join(" ")})`;
      pen.lineWidth = 1.5;
      pen.stroke();
    }
    this.root.dataset.drawn = Number(this.root.dataset.drawn ?? 0) + 1;
  }

  onScreen([x, y]) { return [(x - this.view.x) * this.view.scale + this.width / 2, (this.view.y - y) * this.view.scale + this.height / 2]; }
  onMap([x, y]) { return [(x - this.width / 2) / this.view.scale + this.view.x, this.view.y - (y - this.height / 2) / this.view.scale]; }

  mouse(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  wheel(event) {
    if (!this.view) return;
    event.preventDefault();
    this.hide();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), this.mouse(event));
  }

  zoom(by, at = [this.width / 2, this.height / 2]) {
    if (!this.view) return;
    const [x, y] = this.onMap(at);
    this.view.scale = Math.min(2 * this.least * ZOOM_MOST, Math.max(this.least, this.view.scale * by));
    const [nowX, nowY] = this.onMap(at);
    this.view.x += x - nowX;
    this.view.y += y - nowY;
    this.moved();
  }

  down(event) {
    if (event.button !== 0 || !this.view || event.target.closest("button")) return;
    this.stage.focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
    const at = this.mouse(event);
    this.drag = { from: at, last: at, far: false };
    if (this.tool === "lasso" || event.shiftKey) this.line = [at];
    this.hide();
  }

  move(event) {
    const at = this.mouse(event);
    if (!this.drag) return this.hover(at, event);
    this.drag.far ||= Math.hypot(at[0] - this.drag.from[0], at[1] - this.drag.from[1]) > 4;
    if (this.line) this.line.push(at);
    else if (this.drag.far) {
      this.view.x -= (at[0] - this.drag.last[0]) / this.view.scale;
      this.view.y += (at[1] - this.drag.last[1]) / this.view.scale;
      this.moved();
    }
    this.drag.last = at;
    this.redraw();
  }

  up(event) {
    const { drag, line } = this;
    this.drag = this.line = null;
    if (!drag) return;
    if (!drag.far) this.around(this.mouse(event));
    else if (line) this.say(simplified(line, MOST_CORNERS).map((corner) => this.onMap(corner)));
    this.redraw();
  }

  // A click selects the images around the nearest point, if there is one.
  around(at) {
    const [x, y] = this.onMap(at);
    if (this.cells.nearest(x, y, CLICK_PX / this.view.scale, (i) => this.codes[i] !== OUTSIDE) < 0) return;
    const ring = Array.from({ length: 16 }, (_, step) => (step / 8) * Math.PI);
    this.say(ring.map((turn) => this.onMap([at[0] + CLICK_PX * Math.cos(turn), at[1] + CLICK_PX * Math.sin(turn)])));
  }

  // Sends the lasso to Python in whole numbers, and draws exactly those.
  say(corners) {
    const most = 9_999_999, text = corners.flat().map((value) => Math.max(-most, Math.min(most, Math.round(value * SCALE)))).join(".");
    if (corners.length && corners.length < 3) return;
    this.choose(this.corners(text));
    this.setTriggerValue("lasso", { corners: text });
  }

  hover(at, event) {
    clearTimeout(this.waiting);
    if (!this.cells || !this.view || event.target.closest(".tools")) return this.hide();
    const [x, y] = this.onMap(at), nearest = this.cells.nearest(x, y, HOVER_PX / this.view.scale, () => true);
    if (nearest < 0) return this.hide();
    if (nearest === this.hovered && !this.tip.hidden) return undefined;
    this.waiting = setTimeout(() => this.show(nearest), HOVER_MS);
    return undefined;
  }

  show(i) {
    if (!this.ids || this.drag) return;
    this.hovered = i;
    this.face.hidden = true;
    const id = Array.from(this.ids.subarray(32 * i, 32 * i + 32), (byte) => byte.toString(16).padStart(2, "0")).join("");
    this.tip.dataset.id = id;
    this.face.src = `/v1/thumbnails/${id}`;
    this.words.textContent = this.meaning(this.codes[i]);
    this.tip.hidden = false;
    this.placeTip();
    this.redraw();
  }

  meaning(code) {
    const { legend } = this.data, entry = legend.entries.find((one) => one.code === code);
    if (entry) return code === 253 ? "another class" : entry.name;
    if (legend.kind !== "range") return "";
    const value = legend.low + (code / 249) * (legend.high - legend.low);
    return legend.unit === "time" ? new Date(1000 * value).toISOString().slice(0, 10) : `${legend.unit} ${value.toFixed(2)}`;
  }

  placeTip() {
    if (this.hovered < 0 || this.tip.hidden) return;
    const [x, y] = this.onScreen([this.places[2 * this.hovered], this.places[2 * this.hovered + 1]]);
    const wide = this.tip.offsetWidth, high = this.tip.offsetHeight;
    this.tip.style.left = `${x + 16 + wide > this.width ? x - 16 - wide : x + 16}px`;
    this.tip.style.top = `${Math.max(4, Math.min(this.height - high - 4, y - high / 2))}px`;
  }

  hide() {
    clearTimeout(this.waiting);
    if (this.tip.hidden) return;
    this.tip.hidden = true;
    this.hovered = -1;
    this.redraw();
  }

  key(event) {
    if (event.target !== this.stage || event.ctrlKey || event.metaKey || !this.view) return;
    const step = 60 / this.view.scale, steps = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in steps) {
      this.view.x += steps[event.key][0];
      this.view.y += steps[event.key][1];
      this.moved();
    } else if (event.key === "+" || event.key === "=") this.zoom(1.4);
    else if (event.key === "-") this.zoom(1 / 1.4);
    else if (event.key === "0") this.home();
    else if (event.key === "Enter") this.around([this.width / 2, this.height / 2]);
    else if (event.key.toLowerCase() === "l") this.use(this.tool === "lasso" ? "move" : "lasso");
    else if (event.key === "Escape") { if (this.polygon?.length) this.say([]); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  destroy() {
    this.stopped?.abort();
    clearTimeout(this.waiting);
    clearTimeout(this.stilling);
    if (this.frame) cancelAnimationFrame(this.frame);
    this.resize.disconnect();
    this.painter?.free();
  }
}

// At most `most` corners of a drawn line: those it bends at (Visvalingam: the smallest triangle goes first).
function simplified(line, most) {
  const kept = line.slice();
  const area = (at) => {
    const [a, b, c] = [kept[(at + kept.length - 1) % kept.length], kept[at], kept[(at + 1) % kept.length]];
    return Math.abs((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1]));
  };
  while (kept.length > 3) {
    let least = 0;
    for (let at = 1; at < kept.length; at++) if (area(at) < area(least)) least = at;
    if (kept.length <= most && area(least) > 2) break;
    kept.splice(least, 1);
  }
  return kept;
}

const maps = new WeakMap();

export default function (component) {
  const root = component.parentElement;
  if (!maps.has(root)) maps.set(root, new ImageMap(root.querySelector(".map")));
  const shown = maps.get(root);
  shown.update(component);
  return () => { shown.destroy(); maps.delete(root); };
}
