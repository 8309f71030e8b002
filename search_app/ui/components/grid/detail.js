// The panel beside the grid: one image, its predictions, and everything else the lake has on it.

const whole = new Intl.NumberFormat("en-US");
const when = (iso) => (iso ? iso.slice(0, 16).replace("T", " ") + " UTC" : "no time");
const two = (value) => (value == null ? "–" : value.toFixed(2));

function table(rows) {
  const element = node("dl", "facts");
  for (const [name, value] of rows) {
    if (value === null || value === undefined || value === "") continue;
    element.append(node("dt", "", name), node("dd", "", typeof value === "object" ? JSON.stringify(value) : String(value)));
  }
  return element;
}

function bars(scores, label) {
  const element = node("div", "bars");
  for (const { label: name, score } of [...scores].sort((a, b) => b.score - a.score).slice(0, 8)) {
    const row = node("div", "bar-row" + (name === label ? " predicted" : ""));
    const track = node("span", "track");
    const fill = node("span", "fill");
    fill.style.width = `${Math.max(0, Math.min(1, score)) * 100}%`;
    track.append(fill);
    row.append(node("span", "name", name), track, node("span", "number", two(score)));
    element.append(row);
  }
  return element;
}

// A verdict on a prediction, with the comment.
function voice({ origin, verdict, comment, ticket }) {
  return `${origin} reported ${verdict}` + (ticket ? ` (${ticket})` : "") + (comment ? `: “${comment}”` : "");
}

function section(title, ...content) {
  const element = node("section");
  element.append(node("h4", "", title), ...content);
  return element;
}

class Detail {
  // `act(name, ids)` requests an action of the page; `move(step)` and `close()` are the grid's.
  constructor({ act, move, close, select }) {
    this.element = node("aside", "detail");
    this.element.hidden = true;
    const head = node("header");
    this.place = node("span", "place");
    const button = (text, title, onclick, className = "quiet") => {
      const element = node("button", className, text);
      element.type = "button"; element.title = title; element.onclick = onclick;
      return element;
    };
    head.append(
      this.place,
      button("‹", "Previous (left arrow)", () => move(-1)),
      button("›", "Next (right arrow)", () => move(1)),
      button("×", "Close (Esc)", close),
    );
    this.picture = new Picture();
    this.actions = node("div", "actions");
    this.similar = button("Find similar", "Search for images like this one (S)", () => act("similar", [this.id]), "primary");
    this.alike = button("Find all like it", "Start an active search with this image as its first example (F)", () => act("isolate", [this.id]), "plain");
    this.pick = button("Select", "Select this image (space)", () => select(this.id), "plain");
    this.original = node("a", "plain", "Original");
    this.original.target = "_blank";
    this.original.rel = "noopener";
    this.actions.append(this.similar, this.alike, this.pick, this.original);
    this.body = node("div", "body");
    this.element.append(head, this.picture.element, this.actions, this.body);
  }

  // Shows image `id`, `place` of `count`. Its record arrives a moment later.
  async show(id, ratio, place, count, canSearch) {
    this.place.textContent = `${whole.format(place + 1)} of ${whole.format(count)}`;
    if (this.id === id && !this.element.hidden) return;
    this.id = id;
    this.element.hidden = false;
    this.element.scrollTop = 0;
    this.similar.disabled = this.alike.disabled = !canSearch;
    this.similar.title = canSearch ? "Search for images like this one (S)" : "No image has an embedding yet";
    this.original.href = `/v1/images/${id}`;
    this.picture.show(id, ratio);
    this.body.replaceChildren();
    try {
      const response = await fetch(`/v1/records/${id}`);
      const record = await response.json();
      if (this.id !== id) return;
      if (!response.ok) throw new Error(record.detail);
      this.fill(record);
    } catch (error) {
      if (this.id === id) this.body.replaceChildren(node("p", "muted", `Its record could not be loaded: ${error.message}`));
    }
  }

  hide() {
    this.id = null;
    this.element.hidden = true;
  }

  fill(record) {
    const predictions = record.predictions.filter((one) => one.model !== null);
    const latest = predictions[0] ?? record.predictions[0];
    this.picture.overlay(record, predictions[0]);
    const parts = [];
    if (latest?.image_status) parts.push(node("p", "muted", `No thumbnail: ${latest.image_status}.`));
    if (predictions.length) {
      const line = node("p", "verdict");
      line.append(node("strong", "", latest.label ?? "no label"), node("span", "number", two(latest.confidence)));
      parts.push(line);
      if (record.truth !== null) {
        const right = record.truth === latest.label;
        parts.push(node("p", right ? "truth right" : "truth wrong", right ? `= ${record.truth}, as labelled` : `≠ labelled ${record.truth}`));
      } else parts.push(node("p", "truth muted", "no label yet"));
      if (record.reviews.length) parts.push(node("p", "voice", voice(record.reviews[0])));
      if (latest.scores?.length) parts.push(bars(latest.scores, latest.label));
    } else {
      parts.push(node("p", "muted", record.truth === null ? "No prediction and no label." : `Labelled ${record.truth}; no prediction.`));
    }
    const name = (one) => [one.model, one.model_version].filter(Boolean).join(" ");
    parts.push(section("Facts", table([
      ["model", latest && name(latest)],
      ["predicted", latest?.timestamp && when(latest.timestamp)],
      ["latency", latest?.latency_ms == null ? null : `${latest.latency_ms.toFixed(1)} ms`],
      ["source", latest?.source ?? record.source],
      ["image", `${record.width} × ${record.height} px, ${record.format}`],
      ...Object.entries(latest?.metadata ?? {}),
      ["image id", record.image_id],
      ["prediction id", latest?.prediction_id],
    ])));
    const history = [
      ...predictions.map((one) => [one.timestamp, `${name(one)} predicted ${one.label ?? "nothing"}, ${two(one.confidence)}`]),
      ...record.labels.map((one) => [one.timestamp, `${one.annotator ?? one.origin} labelled ${one.label ?? one.task}`]),
      ...record.reviews.map((one) => [one.timestamp, voice(one), "voice"]),
    ].sort((a, b) => String(b[0]).localeCompare(String(a[0])));
    if (history.length) {
      const list = node("ol", "history");
      for (const [time, text, kind] of history) {
        const item = node("li", kind);
        item.append(node("span", "", text), node("time", "", when(time)));
        list.append(item);
      }
      parts.push(section("History", list));
    }
    if (record.slices.length) {
      parts.push(section("Slices", node("p", "", record.slices.map((one) => `${one.name} v${one.version}`).join(", "))));
    }
    this.body.replaceChildren(...parts);
  }
}
