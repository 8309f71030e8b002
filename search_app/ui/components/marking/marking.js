// A page of an active search: two dozen thumbnails, each yes, no, or not marked yet.
//
// Marks are kept here. Python is told once per page (trigger `act`), and gets only ids. Images that are not marked when
// the page is sent count as no, as the button says.

const COLUMNS = 8, NARROW = 6, NARROW_PX = 900;

// The page handles keys unless the user is typing, choosing or in a dialog.
const ELSEWHERE = "input, textarea, select, [contenteditable='true'], [role='dialog'], [role='listbox'], [role='menu'], dialog";
const PRESSED = "button, a, summary, [role='button'], [role='tab'], [role='radio']";

class Marking {
  constructor(root) {
    this.root = root;
    this.marks = new Map();
    this.active = 0;
    this.detail = new Detail({
      act: () => {},
      move: (step) => this.moveTo(this.active + step),
      close: () => this.look(false),
      select: (id) => this.toggle(this.data.ids.indexOf(id)),
    });
    this.detail.similar.hidden = this.detail.alike.hidden = true; // that search is this one
    this.build();
    this.onkey = (event) => this.key(event);
    document.addEventListener("keydown", this.onkey);
    this.resize = new ResizeObserver(() => this.canvas.style.setProperty("--columns", this.columns()));
    this.resize.observe(this.canvas);
  }

  build() {
    this.numbers = node("div", "numbers");
    this.advice = node("p", "advice");
    this.advice.setAttribute("role", "status");
    this.canvas = node("div", "page");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "listbox");
    this.canvas.setAttribute("aria-multiselectable", "true");
    this.canvas.setAttribute("aria-label", "images to mark");
    this.canvas.onclick = (event) => this.click(event);
    const top = node("div", "head");
    this.like = node("div", "like");
    top.append(this.like, this.numbers, this.advice);
    this.bar = node("div", "bar");
    this.send = this.button("", "Enter", () => this.next(), "primary send");
    this.others = this.button("All but these yes", "A", () => this.allBut());
    this.rest = this.button("The others no", "X", () => this.restNo());
    this.back = this.button("Undo", "U", () => this.undo());
    this.legend = node("span", "legend", "click or space: yes · Y yes · N no · arrow keys move · O opens · L saves · Esc clears");
    this.bar.append(this.send, this.others, this.rest, this.back, this.legend);
    const split = node("div", "marking-split");
    split.append(this.canvas, this.detail.element);
    this.root.replaceChildren(top, split, this.bar);
  }

  button(text, key, onclick, className = "plain") {
    const made = node("button", className);
    made.type = "button";
    made.append(node("span", "", text), node("kbd", "", key));
    made.onclick = onclick;
    return made;
  }

  // A new `token` is another page. A new `turn` means that Python has handled the action, though the page stays.
  update({ data, setTriggerValue }) {
    this.setTriggerValue = setTriggerValue;
    const other = data.token !== this.token, handled = data.turn !== this.turn;
    this.data = data;
    this.token = data.token;
    this.turn = data.turn;
    this.numbers.replaceChildren(...data.numbers.map(([value, what, help]) => {
      const one = node("span", "one");
      one.title = help;
      one.append(node("strong", "", value), node("span", "muted", ` ${what}`));
      return one;
    }));
    this.like.replaceChildren(...data.like.map((id) => {
      const image = node("img");
      image.alt = "";
      image.title = "One of the first examples";
      image.src = `/v1/thumbnails/${id}`;
      return image;
    }));
    this.advice.textContent = data.advice;
    this.advice.classList.toggle("stop", data.stop);
    if (other || handled) this.busy(false);
    if (other) {
      this.marks = new Map(data.ids.filter((id) => data.before[id]).map((id) => [id, data.before[id]]));
      this.active = 0;
      this.look(false);
      this.draw();
      if (!this.elsewhere(document.activeElement)) this.canvas.focus({ preventScroll: true });
    }
    this.show();
  }

  draw() {
    this.canvas.style.setProperty("--columns", this.columns());
    this.canvas.replaceChildren(...this.data.ids.map((id, at) => {
      const tile = node("div", "mark");
      tile.dataset.at = at;
      tile.dataset.id = id;
      tile.setAttribute("role", "option");
      const image = node("img");
      image.alt = "";
      image.draggable = false;
      image.decoding = "async";
      image.onerror = () => tile.classList.add("bare");
      image.src = `/v1/thumbnails/${id}`;
      tile.append(image, node("span", "sign"));
      return tile;
    }));
  }

  columns() {
    return this.canvas.clientWidth && this.canvas.clientWidth < NARROW_PX ? NARROW : COLUMNS;
  }

  count(mark) {
    return this.data.ids.filter((id) => this.marks.get(id) === mark).length;
  }

  show() {
    for (const tile of this.canvas.children) {
      const mark = this.marks.get(tile.dataset.id);
      tile.classList.toggle("yes", mark === "yes");
      tile.classList.toggle("no", mark === "no");
      tile.classList.toggle("active", Number(tile.dataset.at) === this.active);
      tile.setAttribute("aria-selected", mark === "yes");
      tile.lastChild.textContent = { yes: "✓", no: "✕" }[mark] ?? "";
    }
    const all = this.data.ids.length, yes = this.count("yes"), no = this.count("no");
    this.send.firstChild.textContent = yes === 0 ? (all === 1 ? "Not this one" : `None of these ${all}`)
      : yes === all ? (all === 1 ? "This one yes" : `All ${all} yes`)
      : `${yes === 1 ? "This 1" : `These ${yes}`} yes, the other ${all - yes} no`;
    this.send.disabled = !all;
    this.others.firstChild.textContent = yes + no === 0 || yes === all ? `All ${all} yes` : no ? `All but the ${no} ✕ yes` : `All but these ${yes} yes`;
    this.others.disabled = !all || yes === all;
    this.rest.disabled = yes + no === all;
    this.back.disabled = false;
    const open = this.data.ids[this.active];
    if (!this.detail.element.hidden && open) this.detail.pick.textContent = this.marks.get(open) === "yes" ? "Not this one" : "Yes";
  }

  elsewhere(element) {
    return Boolean(element && element !== document.body && element.closest?.(ELSEWHERE) && !this.root.contains(element));
  }

  key(event) {
    const [target] = event.composedPath(), inside = event.composedPath().includes(this.root);
    if (this.waiting || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (!inside && target.closest?.(ELSEWHERE)) return;
    if (target.tagName === "INPUT") return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if ((key === "Enter" || key === " ") && target.closest?.(PRESSED)) return; // presses what has the focus
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns(), ArrowDown: this.columns() };
    if (key in steps) this.moveTo(this.active + steps[key]);
    else if (key === "Home" || key === "End") this.moveTo(key === "Home" ? 0 : this.data.ids.length - 1);
    else if (key === "y" || key === "n") this.say(this.active, key === "y" ? "yes" : "no");
    else if (key === " ") this.toggle(this.active);
    else if (key === "a") this.allBut();
    else if (key === "x") this.restNo();
    else if (key === "o") this.look(this.detail.element.hidden);
    else if (key === "u") this.undo();
    else if (key === "l") this.setTriggerValue("act", { name: "slice" });
    else if (key === "Enter") this.next();
    else if (key === "Escape") this.escape();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  click(event) {
    const tile = event.target.closest(".mark");
    if (!tile || this.waiting) return;
    this.active = Number(tile.dataset.at);
    this.toggle(this.active);
    this.canvas.focus({ preventScroll: true });
  }

  moveTo(at) {
    if (at < 0 || at >= this.data.ids.length) return;
    this.active = at;
    if (!this.detail.element.hidden) this.look(true);
    this.show();
    this.canvas.children[at].scrollIntoView({ block: "nearest" });
  }

  // Y and N move to the next image; a toggle stays, so that you can undo it.
  say(at, mark) {
    if (!this.data.ids[at]) return;
    this.marks.set(this.data.ids[at], mark);
    this.moveTo(Math.min(at + 1, this.data.ids.length - 1));
    this.show();
  }

  toggle(at) {
    const id = this.data.ids[at];
    if (!id) return;
    if (this.marks.get(id) === "yes") this.marks.delete(id);
    else this.marks.set(id, "yes");
    this.show();
  }

  // The exceptions are the images marked no or, if there are none, those marked yes.
  allBut() {
    const picked = this.count("no") === 0;
    for (const id of this.data.ids) {
      const mark = this.marks.get(id);
      this.marks.set(id, mark === "no" || (picked && mark === "yes") ? "no" : "yes");
    }
    this.show();
  }

  restNo() {
    for (const id of this.data.ids) if (!this.marks.has(id)) this.marks.set(id, "no");
    this.show();
  }

  look(open) {
    if (!open || !this.data.ids.length) {
      this.detail.hide();
      if (!open) this.canvas.focus({ preventScroll: true });
    } else {
      const tile = this.canvas.children[this.active], image = tile.firstChild, columns = this.columns();
      this.detail.element.classList.toggle("left", this.active % columns >= columns / 2); // beside it, not over it
      this.detail.show(this.data.ids[this.active], image.naturalWidth / image.naturalHeight || 1, this.active, this.data.ids.length, true);
      this.show();
    }
  }

  escape() {
    if (!this.detail.element.hidden) return this.look(false);
    this.marks.clear();
    this.show();
  }

  next() {
    if (this.waiting || !this.data.ids.length) return;
    const yes = this.data.ids.filter((id) => this.marks.get(id) === "yes");
    this.busy(true);
    this.setTriggerValue("act", { name: "mark", token: this.token, yes });
  }

  undo() {
    if (this.waiting) return;
    this.busy(true);
    this.setTriggerValue("act", { name: "undo", token: this.token });
  }

  busy(waiting) {
    this.waiting = waiting;
    this.canvas.classList.toggle("waiting", waiting);
    for (const one of [this.send, this.others, this.rest, this.back]) one.disabled = waiting;
  }

  destroy() {
    document.removeEventListener("keydown", this.onkey);
    this.resize.disconnect();
  }
}

const markings = new WeakMap();

export default function (component) {
  const root = component.parentElement;
  if (!markings.has(root)) markings.set(root, new Marking(root.querySelector(".marking")));
  const marking = markings.get(root);
  marking.update(component);
  return () => { marking.destroy(); markings.delete(root); };
}
