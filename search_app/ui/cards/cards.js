// Cards of clusters. One click opens a cluster; text is set by textContent alone.

function node(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
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
    part.title = `${label}: ${n.toLocaleString("en-US")} answers`;
    bar.append(part);
    if (words.length < 2) words.push(`${Math.round((100 * n) / total)} % called ${label}`);
  }
  return [bar, node("div", "words", words.join(", ") + (labels.length > 2 ? `, ${labels.length - 2} more` : ""))];
}

function card(data, palette, colours, open) {
  const made = node("button", "card");
  made.type = "button";
  made.dataset.node = data.node;
  made.onclick = () => open(data.node);
  const thumbs = node("div", "thumbs");
  for (const id of data.thumbs) {
    const image = node("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = `/v1/thumbnails/${id}`;
    thumbs.append(image);
  }
  const head = node("div", "head");
  head.append(node("strong", "", data.noise ? `Scattered (${data.node})` : `Cluster ${data.node}`), node("span", "size", data.size));
  if (data.noise) made.title = "Images that fit no cluster here (noise)";
  const facts = node("div", "facts");
  facts.append(
    node("span", data.alarm ? "wrong alarm" : "wrong", data.wrong),
    node("span", "muted", data.interval),
  );
  made.append(thumbs, head);
  if (data.alarm) made.classList.add("alarming");
  for (const kind of data.kinds) made.append(node("div", "words", kind));
  if (data.labels.length) made.append(facts, ...labelBar(data.labels, palette, colours), node("div", "words muted", data.confidence));
  else made.append(node("div", "facts muted", "no answers"));
  return made;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".cards");
  const raw = getComputedStyle(root).getPropertyValue("--st-chart-categorical-colors");
  // The second colour of the theme says "wrong" everywhere, so no class gets it.
  const colours = (raw ? raw.split(",") : ["gray"]).filter((_, place) => place !== 1);
  root.replaceChildren(...data.cards.map((one) => card(one, data.palette, colours, (path) => setTriggerValue("open", path))));
}
