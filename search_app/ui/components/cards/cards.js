// Cards of clusters. Click or Enter opens a cluster. Text is set by textContent only.

function node(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function labelBar(labels, palette, colours) {
  const total = labels.reduce((sum, one) => sum + one.n, 0);
  const bar = node("div", "bar");
  const words = [];
  for (const { label, n } of labels.slice(0, 6)) {
    const part = node("span");
    part.style.flexGrow = n;
    const place = palette.indexOf(label);
    part.style.background = place < 0 ? "var(--st-border-color)" : colours[place % colours.length];
    part.title = `${label}: ${n.toLocaleString("en-US")} predictions`;
    bar.append(part);
    if (words.length < 2) words.push(`${Math.round((100 * n) / total)} % predicted ${label}`);
  }
  return [bar, node("div", "words", words.join(", ") + (labels.length > 2 ? `, ${labels.length - 2} more` : ""))];
}

function pictures(ids, className) {
  const element = node("div", className);
  for (const id of ids) {
    const image = node("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = `/v1/thumbnails/${id}`;
    element.append(image);
  }
  return element;
}

// Images that a typical image does not represent: those that fit least, and the most confident errors.
function exceptions(data) {
  const element = node("div", "telling");
  for (const [ids, className, words, title] of [
    [data.borderline, "edge", "least similar", "The images that fit this cluster least"],
    [data.errors, "errors", "≠ most confident errors", "The wrong predictions with the highest confidence in this cluster"],
  ]) {
    if (!ids.length) continue;
    const part = node("div", className);
    part.title = title;
    part.append(pictures(ids, "strip"), node("div", "muted", words));
    element.append(part);
  }
  return element;
}

const ACTS = [
  ["montage", "All images", "M", "Show all its images as small thumbnails"],
  ["accept", "Accept all", "Y", "All its images are what you search for"],
  ["refuse", "Refuse all", "N", "None of its images is what you search for"],
];

function card(data, palette, colours, searching, act) {
  const element = node("div", "card");
  element.dataset.node = data.node;
  const open = node("button", "open");
  open.type = "button";
  open.onclick = () => act("open", data.node);
  open.setAttribute("aria-label", `Open ${data.name}, ${data.size}`);
  const head = node("div", "head");
  const name = node("strong", data.suggested ? "suggested" : "", data.name);
  name.title = data.noise ? "Images that fit no cluster here" : data.suggested ? `Suggested from its contents: ${data.name}` : `Cluster ${data.node}`;
  head.append(name, node("span", "size", data.size));
  const facts = node("div", "facts");
  facts.append(node("span", data.alarm ? "wrong alarm" : "wrong", data.wrong), node("span", "muted", data.interval));
  open.append(pictures(data.thumbs, "thumbs"), head);
  if (data.alarm) element.classList.add("alarming");
  for (const kind of data.kinds) open.append(node("div", "words", kind));
  if (data.labels.length) open.append(facts, ...labelBar(data.labels, palette, colours));
  else open.append(node("div", "facts muted", "no predictions"));
  const quality = node("div", "words muted", data.quality);
  quality.title = "Mean confidence: of the predictions in it. Compactness: mean cosine of its images to their centre; higher is tighter. Persistence: how long it stays together as density rises, 0 to 1. Compare the last two only between clusters of one split.";
  open.append(quality);
  const acts = node("div", "acts");
  for (const [name, text, key, title] of ACTS) {
    if (name !== "montage" && !searching) continue;
    const button = node("button", "act", text);
    button.type = "button";
    button.title = `${title} (${key})`;
    button.dataset.act = name;
    button.onclick = () => act(name, data.node);
    acts.append(button);
  }
  element.append(open, exceptions(data), acts);
  return element;
}

// Arrow keys move from card to card; a letter presses the button with that key.
function steer(root, act) {
  return (event) => {
    const here = event.target.closest(".card");
    if (!here || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...root.children], key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const columns = getComputedStyle(root).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    const wanted = ACTS.find(([, , letter]) => letter.toLowerCase() === key);
    if (step) all[all.indexOf(here) + step]?.querySelector(".open").focus();
    else if (wanted && here.querySelector(`[data-act="${wanted[0]}"]`)) act(wanted[0], here.dataset.node);
    else return;
    event.preventDefault();
  };
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".cards");
  const raw = getComputedStyle(root).getPropertyValue("--st-chart-categorical-colors");
  // The second colour of the theme means "wrong" everywhere, so no class gets it.
  const colours = (raw ? raw.split(",") : ["gray"]).filter((_, place) => place !== 1);
  const act = (name, path) => setTriggerValue("act", { name, node: path });
  const focused = root.getRootNode().activeElement?.closest?.(".card")?.dataset.node;
  root.onkeydown = steer(root, act);
  root.replaceChildren(...data.cards.map((one) => card(one, data.palette, colours, data.searching, act)));
  if (focused) root.querySelector(`[data-node="${focused}"] .open`)?.focus({ preventScroll: true });
  const legend = "arrow keys move · Enter opens · M all images" + (data.searching ? " · Y accept all · N refuse all" : "");
  parentElement.querySelector(".keys").textContent = legend;
}
