// The image grid: justified rows of thumbnails, of which only those near the window exist in the page.
//
// Selection, opening and keys are handled here at once. Python is told a moment later (state `view`), to update the
// URL, and of actions (trigger `act`). Only ids are sent. Text is set by textContent only.

const HEIGHTS = { xs: 46, s: 84, m: 132, l: 208 };
const GAP = 6, STRIP = 22, OVERSCAN = 900, NEAR = 400; // pixels
const KEEP_MS = 350, LOAD_MS = 40;

class Grid {
  constructor(root) {
    this.root = root;
    this.tiles = new Map();
    this.rows = [];
    this.selected = new Set();
    this.active = -1;
    this.open = null;
    this.size = "m";
    this.detail = new Detail({
      act: (name, ids) => this.act(name, ids),
      move: (step) => this.move(step, true),
      close: () => this.close(),
      select: (id) => this.toggle(this.index.get(id)),
    });
    this.build();
    this.onscroll = () => this.schedule();
    document.addEventListener("scroll", this.onscroll, { capture: true, passive: true });
    this.resize = new ResizeObserver(() => this.layout());
    this.resize.observe(this.canvas);
  }

  build() {
    const top = node("div", "top");
    this.title = node("span", "title");
    this.legend = node("span", "legend", "click opens · space selects · shift selects a range · arrow keys move · Ctrl+A selects all");
    this.sizes = node("span", "sizes");
    for (const [size, text] of [["xs", "XS"], ["s", "S"], ["m", "M"], ["l", "L"]]) {
      const button = node("button", "quiet", text);
      button.type = "button";
      button.title = { xs: "Montage: as many images as fit the window", s: "Small thumbnails", m: "Medium thumbnails", l: "Large thumbnails" }[size];
      button.dataset.size = size;
      button.onclick = () => { this.size = size; this.layout(); this.tell(); };
      this.sizes.append(button);
    }
    const all = node("button", "quiet", "Select all");
    all.type = "button";
    all.title = "Select every image below (Ctrl+A)";
    all.onclick = () => { this.selected = new Set(this.data.ids); this.showSelection(); this.tell(); };
    top.append(this.title, this.legend, all, this.sizes);
    this.canvas = node("div", "canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "listbox");
    this.canvas.setAttribute("aria-multiselectable", "true");
    this.canvas.setAttribute("aria-label", "images");
    this.canvas.onkeydown = (event) => this.key(event);
    this.canvas.onclick = (event) => this.click(event);
    this.probe = node("div", "probe");
    this.canvas.append(this.probe);
    const split = node("div", "split");
    split.append(this.canvas, this.detail.element);
    this.bar = node("div", "selection");
    this.bar.hidden = true;
    this.root.replaceChildren(top, split, this.bar);
    this.detail.element.onkeydown = (event) => { if (event.target.tagName !== "INPUT") this.key(event); };
  }

  // Takes the data of the page. A new `token` means new results; a new `turn` means that the URL changed by itself
  // (back, forward). Then the page decides what is selected and open, otherwise the browser.
  update({ data, setStateValue, setTriggerValue }) {
    this.setStateValue = setStateValue;
    this.setTriggerValue = setTriggerValue;
    const other = data.token !== this.token, turned = data.view.turn !== this.turn;
    this.turn = data.view.turn;
    this.data = data;
    this.title.textContent = data.title;
    if (!other && !turned) return;
    clearTimeout(this.timer);
    if (other) {
      this.index = new Map(data.ids.map((id, place) => [id, place]));
      for (const [at, tile] of this.tiles) this.drop(at, tile);
    }
    this.token = data.token;
    this.size = data.view.size;
    this.selected = new Set(data.view.selected);
    this.open = this.index.has(data.view.open) ? data.view.open : null;
    this.active = this.open ? this.index.get(this.open) : -1;
    this.anchor = this.active;
    this.naming = false;
    this.showDetail();
    this.showSelection();
    this.layout();
  }

  // Rows as wide as the canvas: [first index, count, top, height]; positions of tiles follow from them.
  layout() {
    if (!this.data) return;
    for (const button of this.sizes.children) button.classList.toggle("on", button.dataset.size === this.size);
    const width = this.canvas.clientWidth, target = HEIGHTS[this.size], ratios = this.data.ratios;
    this.strip = this.size === "xs" ? 0 : STRIP;
    if (!width) return;
    this.rows = [];
    this.spot = new Array(ratios.length);
    let first = 0, sum = 0, top = 0;
    const close = (end, height) => {
      let left = 0;
      for (let at = first; at < end; at++) {
        const wide = this.ratio(at) * height;
        this.spot[at] = [left, top, wide, height];
        left += wide + GAP;
      }
      this.rows.push([first, end, top, height]);
      top += height + this.strip + GAP;
      first = end;
      sum = 0;
    };
    for (let at = 0; at < ratios.length; at++) {
      sum += this.ratio(at);
      const gaps = (at - first) * GAP;
      if (sum * target + gaps >= width) close(at + 1, (width - gaps) / sum);
    }
    if (first < ratios.length) close(ratios.length, target);
    this.canvas.style.height = `${Math.max(0, top - GAP)}px`;
    this.canvas.dataset.size = this.size;
    this.paint(true);
  }

  ratio(at) {
    return Math.min(2.4, Math.max(0.62, this.data.ratios[at]));
  }

  schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = null; this.paint(false); });
  }

  // Creates the tiles near the window, and removes all others.
  paint(moved) {
    const offset = this.canvas.getBoundingClientRect().top;
    const from = -offset - OVERSCAN, to = -offset + window.innerHeight + OVERSCAN;
    const wanted = new Set();
    for (const [first, end, top, height] of this.rows) {
      if (top + height + this.strip < from || top > to) continue;
      for (let at = first; at < end; at++) wanted.add(at);
    }
    for (const [at, tile] of this.tiles) if (!wanted.has(at)) this.drop(at, tile);
    for (const at of wanted) {
      let tile = this.tiles.get(at);
      const isNew = !tile;
      if (isNew) {
        tile = this.tile(at);
        this.tiles.set(at, tile);
        this.canvas.append(tile);
      }
      if (isNew || moved) {
        const [left, top, width, height] = this.spot[at];
        tile.style.transform = `translate(${left}px, ${top}px)`;
        tile.style.width = `${width}px`;
        tile.firstChild.style.height = `${height}px`;
      }
    }
    this.loadSoon();
    this.fitDetail();
    this.mark();
  }

  // Requests thumbnails a moment later, and only for rows still near: a fast scroll passes thousands.
  loadSoon() {
    this.loading ??= setTimeout(() => {
      this.loading = null;
      for (const [at, tile] of this.tiles) {
        const image = tile.querySelector("img"), { top, bottom } = tile.getBoundingClientRect();
        if (!image.src && bottom > -NEAR && top < window.innerHeight + NEAR) image.src = `/v1/thumbnails/${this.data.ids[at]}`;
      }
    }, LOAD_MS);
  }

  drop(at, tile) {
    const image = tile.querySelector("img");
    if (!image.complete) image.removeAttribute("src"); // ends the request
    tile.remove();
    this.tiles.delete(at);
  }

  // The panel ends at the edge of the window, or above the action bar, at every scroll position.
  fitDetail() {
    if (this.open === null) return;
    const top = Math.max(64, this.canvas.getBoundingClientRect().top);
    this.detail.element.style.maxHeight = `${Math.max(320, window.innerHeight - top - (this.selected.size ? 84 : 16))}px`;
  }

  tile(at) {
    const { ids, labels, label, value, truth, digits } = this.data;
    const tile = node("div", "tile");
    tile.dataset.at = at;
    tile.dataset.id = ids[at];
    tile.setAttribute("role", "option");
    const face = node("div", "face");
    const image = node("img");
    image.decoding = "async";
    image.alt = "";
    image.draggable = false;
    image.onerror = () => face.classList.add("bare");
    const check = node("span", "check");
    check.title = "Select (space)";
    face.append(image, check);
    const strip = node("div", "strip");
    const name = label[at] === null ? null : labels[label[at]];
    const known = truth[at] === null ? null : labels[truth[at]];
    strip.append(node("span", name === null ? "name none" : "name", name ?? (known === null ? "no prediction" : `labelled ${known}`)));
    if (name !== null && known !== null && known !== name) {
      const wrong = node("span", "wrong", "≠ ");
      wrong.append(node("span", "word", known));
      strip.append(wrong);
    }
    if (value[at] !== null) strip.append(node("span", "number", value[at].toFixed(digits)));
    tile.title = [name ?? "no prediction", known !== null ? `labelled ${known}` : "", value[at] === null ? "" : `${this.data.measure} ${value[at].toFixed(3)}`]
      .filter(Boolean).join(" · ");
    tile.append(face, strip);
    return tile;
  }

  mark() {
    for (const [at, tile] of this.tiles) {
      const id = this.data.ids[at], picked = this.selected.has(id);
      tile.classList.toggle("selected", picked);
      tile.classList.toggle("active", at === this.active);
      tile.classList.toggle("open", id === this.open);
      tile.setAttribute("aria-selected", picked);
    }
  }

  click(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const at = Number(tile.dataset.at);
    this.canvas.focus({ preventScroll: true });
    if (event.shiftKey) this.range(at);
    else if (event.target.closest(".check") || event.ctrlKey || event.metaKey) this.toggle(at);
    else this.show(at);
  }

  key(event) {
    const ctrl = event.ctrlKey || event.metaKey, key = event.key;
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (key in steps) this.move(steps[key], !event.shiftKey, event.shiftKey);
    else if (key === "ArrowUp" || key === "ArrowDown") this.moveRow(key === "ArrowDown" ? 1 : -1, event.shiftKey);
    else if (key === "Home" || key === "End") this.moveTo(key === "Home" ? 0 : this.data.ids.length - 1);
    else if (key === " ") this.toggle(this.active);
    else if (key === "Enter") this.show(Math.max(0, this.active));
    else if (key === "Escape") this.escape();
    else if (ctrl && key.toLowerCase() === "a") { this.selected = new Set(this.data.ids); this.showSelection(); this.tell(); }
    else if (!ctrl && key.toLowerCase() === "s") this.act("similar", this.chosen());
    else if (!ctrl && key.toLowerCase() === "f") this.act("isolate", this.chosen());
    else if (!ctrl && key.toLowerCase() === "l" && this.selected.size) this.nameSlice();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  move(step, follow, extend) {
    this.moveTo(this.active < 0 ? 0 : this.active + step, extend);
  }

  moveRow(step, extend) {
    const row = this.rows.findIndex(([first, end]) => this.active >= first && this.active < end);
    const next = this.rows[row + step];
    if (row < 0 || !next) return this.active < 0 ? this.moveTo(0) : undefined;
    const [left, , width] = this.spot[this.active], middle = left + width / 2;
    let best = next[0];
    for (let at = next[0]; at < next[1]; at++) if (this.spot[at][0] <= middle) best = at;
    this.moveTo(best, extend);
  }

  moveTo(at, extend = false) {
    const place = Math.max(0, Math.min(this.data.ids.length - 1, at));
    if (extend) return this.range(place);
    this.active = this.anchor = place;
    if (this.open) this.show(place);
    else this.mark();
    this.reveal(place);
  }

  // Scroll so that image `at` is in the window, whether its tile exists yet or not.
  reveal(at) {
    const [, top, , height] = this.spot[at];
    this.probe.style.top = `${top}px`;
    this.probe.style.height = `${height + this.strip}px`;
    this.probe.scrollIntoView({ block: "nearest" });
    this.paint(false);
  }

  show(at) {
    this.active = this.anchor = at;
    this.open = this.data.ids[at];
    this.showDetail();
    this.mark();
    this.tell();
  }

  showDetail() {
    if (this.open === null) return this.detail.hide();
    this.fitDetail();
    const at = this.index.get(this.open);
    this.detail.show(this.open, this.data.ratios[at], at, this.data.ids.length, this.data.searchable);
    this.detail.pick.textContent = this.selected.has(this.open) ? "Unselect" : "Select";
  }

  close() {
    this.open = null;
    this.detail.hide();
    this.mark();
    this.tell();
    this.canvas.focus({ preventScroll: true });
  }

  escape() {
    if (this.open !== null) return this.close();
    this.selected.clear();
    this.showSelection();
    this.tell();
  }

  toggle(at) {
    if (at === undefined || at < 0) return;
    const id = this.data.ids[at];
    if (!this.selected.delete(id)) this.selected.add(id);
    this.active = this.anchor = at;
    this.showSelection();
    this.tell();
  }

  range(at) {
    const from = this.anchor < 0 || this.anchor === undefined ? at : this.anchor;
    for (let place = Math.min(from, at); place <= Math.max(from, at); place++) this.selected.add(this.data.ids[place]);
    this.active = at;
    this.showSelection();
    this.reveal(at);
    this.tell();
  }

  chosen() {
    if (this.selected.size) return [...this.selected];
    return this.open ? [this.open] : this.active >= 0 ? [this.data.ids[this.active]] : [];
  }

  // The action bar, the same on every page.
  showSelection() {
    this.mark();
    const count = this.selected.size;
    this.bar.hidden = count === 0;
    this.fitDetail();
    this.root.classList.toggle("selecting", count > 0);
    if (this.open !== null) this.detail.pick.textContent = this.selected.has(this.open) ? "Unselect" : "Select";
    if (!count) { this.naming = false; return; }
    if (this.naming && this.bar.querySelector("input")) {
      this.bar.querySelector(".many").textContent = `${whole.format(count)} selected`;
      return;
    }
    const button = (text, key, onclick, className = "plain") => {
      const element = node("button", className, text);
      element.type = "button";
      element.onclick = onclick;
      if (key) element.append(node("kbd", "", key));
      return element;
    };
    const similar = button("Find similar", "S", () => this.act("similar", this.chosen()), "primary");
    similar.disabled = !this.data.searchable;
    similar.title = !this.data.searchable ? "No image has an embedding yet" : count > 1 ? "Search for images like the mean of the selected images" : "Search for images like this one";
    const alike = button("Find all like these", "F", () => this.act("isolate", this.chosen()));
    alike.disabled = !this.data.searchable;
    alike.title = this.data.searchable ? "Start an active search with these images as its first examples" : "No image has an embedding yet";
    this.bar.replaceChildren(
      node("span", "many", `${whole.format(count)} selected`),
      similar,
      alike,
      button("Add to slice", "L", () => this.nameSlice()),
      node("span", "space"),
      button("Clear", "Esc", () => { this.selected.clear(); this.showSelection(); this.tell(); }, "quiet"),
    );
  }

  nameSlice() {
    this.naming = true;
    const form = node("form", "naming");
    const input = node("input");
    input.placeholder = "slice name";
    input.setAttribute("aria-label", "slice name");
    input.maxLength = 80;
    input.setAttribute("list", "slices");
    const known = node("datalist");
    known.id = "slices";
    known.append(...this.data.slices.map((name) => { const option = node("option"); option.value = name; return option; }));
    const role = node("select");
    role.setAttribute("aria-label", "role");
    role.title = "What the slice is for";
    for (const [value, text] of [["", "no role"], ["train", "for training"], ["evaluation", "for evaluation"], ["regression", "for regression"]]) {
      const option = node("option", "", text);
      option.value = value;
      role.append(option);
    }
    const save = node("button", "primary", "Save slice");
    input.oninput = () => {
      const exists = this.data.slices.includes(input.value.trim());
      save.textContent = exists ? "Add to slice" : "Save slice";
      save.title = exists ? "Saves its next version with these images added" : "Saves a new slice of these images";
    };
    form.append(input, known, role, save);
    form.onsubmit = (event) => {
      event.preventDefault();
      const name = input.value.trim();
      if (!name) return input.focus();
      this.naming = false;
      this.act("slice", [...this.selected], { slice: name, role: role.value });
      this.showSelection();
    };
    input.onkeydown = (event) => {
      event.stopPropagation();
      if (event.key === "Escape") { this.naming = false; this.showSelection(); this.canvas.focus({ preventScroll: true }); }
    };
    this.bar.children[3].replaceWith(form);
    input.focus();
  }

  act(name, ids, more = {}) {
    if (!ids.length || (name !== "slice" && !this.data.searchable)) return;
    clearTimeout(this.timer); // the view is about to change
    this.setTriggerValue("act", { name, ids, ...more });
  }

  // Tells Python once the user has paused, to update the URL.
  tell() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (!this.root.isConnected) return;
      this.setStateValue("view", { token: this.token, open: this.open, selected: [...this.selected], size: this.size });
    }, KEEP_MS);
  }

  destroy() {
    clearTimeout(this.timer);
    clearTimeout(this.loading);
    document.removeEventListener("scroll", this.onscroll, { capture: true });
    this.resize.disconnect();
  }
}

const grids = new WeakMap();

export default function (component) {
  const root = component.parentElement;
  if (!grids.has(root)) grids.set(root, new Grid(root.querySelector(".grid")));
  const grid = grids.get(root);
  grid.update(component);
  return () => { grid.destroy(); grids.delete(root); };
}
