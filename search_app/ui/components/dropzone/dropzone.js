// Drop, paste or choose an image: it is posted to /v1/queries, and Python gets only its id.
// Drop and paste work anywhere on the page unless a text field has the focus.

function node(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const EMPTY = "Drop, paste or choose an image";
const MORE = "Drop, paste or choose another";

class Tray {
  constructor(root) {
    this.exemplars = node("div", "exemplars");
    this.zone = node("button", "zone");
    this.zone.type = "button";
    this.words = node("span", "words", EMPTY);
    this.hint = node("span", "hint", "JPEG, PNG, WebP, TIFF … up to 32 MB");
    this.zone.append(this.words, this.hint);
    this.input = node("input");
    this.input.type = "file";
    this.input.accept = "image/*";
    this.input.hidden = true;
    this.problem = node("p", "problem");
    this.problem.setAttribute("role", "alert");
    root.replaceChildren(this.exemplars, this.zone, this.input, this.problem);
    this.zone.onclick = () => this.input.click();
    this.input.onchange = () => { this.send(this.input.files[0]); this.input.value = ""; };
    this.listen = {
      paste: (event) => {
        const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
        if (file && !typing(event)) { event.preventDefault(); this.send(file); }
      },
      dragover: (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        this.zone.classList.add("over");
      },
      dragleave: (event) => { if (!event.relatedTarget) this.zone.classList.remove("over"); },
      drop: (event) => {
        this.zone.classList.remove("over");
        const file = event.dataTransfer?.files[0];
        if (file) { event.preventDefault(); this.send(file); }
      },
    };
    for (const [name, listener] of Object.entries(this.listen)) document.addEventListener(name, listener);
  }

  update({ data, setTriggerValue }) {
    this.setTriggerValue = setTriggerValue;
    this.busy(false);
    this.words.textContent = data.exemplars.length ? MORE : EMPTY;
    const more = data.more ? [node("span", "more", `and ${data.more} more`)] : [];
    this.exemplars.replaceChildren(...data.exemplars.map(({ id, url }) => {
      const element = node("div", "exemplar");
      const image = node("img");
      image.src = url;
      image.alt = "search example";
      image.onerror = () => { element.classList.add("gone"); element.title = "This query image is no longer stored; upload it again"; };
      const remove = node("button", "remove", "×");
      remove.type = "button";
      remove.title = "Remove from the search";
      remove.onclick = () => setTriggerValue("removed", id);
      element.append(image, remove);
      return element;
    }), ...more);
  }

  busy(on) {
    this.zone.disabled = on;
    this.zone.classList.toggle("busy", on);
    if (on) this.words.textContent = "Reading the image …";
  }

  async send(file) {
    if (!file || this.zone.disabled) return;
    this.problem.textContent = "";
    const before = this.words.textContent;
    this.busy(true);
    try {
      const response = await fetch("/v1/queries", { method: "POST", body: file, headers: { "Content-Type": file.type || "image/unknown" } });
      const result = await response.json();
      if (!response.ok) throw new Error(result.detail);
      this.setTriggerValue("uploaded", result.query_id);
    } catch (error) {
      this.problem.textContent = `${file.name || "The pasted image"}: ${error.message}`;
    }
    this.busy(false);
    this.words.textContent = before;
  }

  destroy() {
    for (const [name, listener] of Object.entries(this.listen)) document.removeEventListener(name, listener);
  }
}

function typing(event) {
  const at = event.composedPath()[0];
  return at instanceof HTMLElement && (at.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(at.tagName));
}

const trays = new WeakMap();

export default function (component) {
  const root = component.parentElement;
  if (!trays.has(root)) trays.set(root, new Tray(root.querySelector(".tray")));
  const tray = trays.get(root);
  tray.update(component);
  return () => { tray.destroy(); trays.delete(root); };
}
