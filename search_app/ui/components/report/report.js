// Blocks of a page. Text is set by textContent only.

function node(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content.filter((one) => one !== undefined && one !== null && one !== ""));
  return element;
}

function thumbnail(id, alt = "") {
  const image = node("img");
  image.alt = alt;
  image.onerror = () => { image.style.visibility = "hidden"; }; // there is no thumbnail: leave its place empty
  image.src = `/v1/thumbnails/${id}`;
  return image;
}

// A link to another page of the app. A click with Ctrl, Cmd or Shift opens a new tab or window.
function leadTo(anchor, to, go) {
  anchor.href = to.href;
  anchor.onclick = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    go(to);
  };
  return anchor;
}

class Report {
  constructor(root) {
    this.root = root;
    this.body = node("div");
    this.live = new Live((to) => this.go(to), () => this.refresh());
    root.replaceChildren(this.live.element, this.body);
    this.charts = [];
    this.resize = new ResizeObserver(() => this.fit());
    this.resize.observe(root);
  }

  update({ data, setTriggerValue }) {
    this.go = (to) => setTriggerValue("go", { page: to.page, params: to.params });
    this.refresh = () => setTriggerValue("refresh", Date.now());
    this.live.follow(data.live);
    const shown = JSON.stringify(data.rows);
    if (shown === this.shown) return; // an unchanged report must not flicker
    this.shown = shown;
    this.charts = [];
    this.body.replaceChildren(...data.rows.map((row) => {
      const element = node("div", `row of${row.length}`, ...row.map((block) => this.block(block)));
      element.style.setProperty("--shares", row.map((block) => `minmax(0, ${block.wide ?? 1}fr)`).join(" "));
      return element;
    }));
    this.fit();
  }

  block(data) {
    return node("section", data.kind, data.title ? node("h2", "", data.title) : "", ...this[data.kind](data));
  }

  link(to, className, ...content) {
    const element = node("a", className, ...content);
    return leadTo(element, to, (place) => this.go(place));
  }

  numbers({ items, note }) {
    const all = items.map(({ name, value, small, help }) => {
      const element = node("div", "figure", node("span", "name", name), node("strong", "", value), node("span", "small", small));
      if (help) element.title = help;
      if (help) element.firstChild.classList.add("explained");
      return element;
    });
    return [node("div", "figures", ...all), note ? node("p", "note", note) : ""];
  }

  cards({ note, cards, empty, links }) {
    const all = cards.map(({ link, lead, small, lines, images }) => {
      const pictures = images.map((id) => thumbnail(id));
      const text = node("div", "text", node("div", "title", node("strong", "", link.text), node("span", "lead", lead), node("span", "note", small)), ...lines.map((one) => node("p", "", one)));
      return this.link(link, "card", node("div", "faces", ...pictures), text, node("span", "arrow", "›"));
    });
    const more = links.map((to) => this.link(to, "plain", to.text));
    return [
      ...(all.length ? all : [node("p", "", empty)]),
      note ? node("p", "caption", note) : "",
      more.length ? node("p", "more", ...more) : "",
    ];
  }

  table({ columns, rows, note }) {
    const side = (place) => columns[place].align;
    const heads = columns.map(({ name, help }, place) => {
      const element = node("th", side(place), node("span", help ? "explained" : "", name));
      if (help) element.title = help;
      return element;
    });
    const lines = rows.map((row) => {
      const cells = row.map((cell, place) => node("td", side(place) + (cell?.alarm ? " alarm" : ""), cell?.href ? this.link(cell, "", cell.text) : cell?.text ?? String(cell)));
      return node("tr", "", ...cells);
    });
    const element = node("table", "", node("thead", "", node("tr", "", ...heads)), node("tbody", "", ...lines));
    return [node("div", "scroll", element), note ? node("p", "caption", note) : ""];
  }

  voices({ note, voices, links }) {
    const all = voices.map(({ link, similar, verdict, facts, image, comment, timestamp }) => {
      const small = node("span", "note", [...facts, ago(timestamp)].join(" · "));
      const title = node("div", "title", this.link(link, "whole", link.text), node("span", "lead", verdict), small);
      const text = node("div", "text", title, comment ? node("p", "quote", `“${comment}”`) : "", this.link(similar, "alike", similar.text));
      return node("div", "card voice", node("div", "faces", thumbnail(image)), text);
    });
    return [...all, note ? node("p", "caption", note) : "", links.length ? node("p", "more", ...links.map((to) => this.link(to, "plain", to.text))) : ""];
  }

  stack({ blocks }) {
    return blocks.map((one) => this.block(one));
  }

  bars(data) { return this.chart(data, drawBars); }
  line(data) { return this.chart(data, drawLine); }

  chart(data, draw) {
    const place = node("div", "chart");
    this.charts.push([place, data, draw]);
    const key = VERDICTS.flatMap((name, part) => [node("i", `key part${part}`), name]);
    return [place, data.kind === "bars" ? node("p", "legend", ...key) : node("p", "legend", data.legend)];
  }

  fit() {
    for (const [place, data, draw] of this.charts) {
      const width = Math.floor(place.clientWidth);
      if (!width || place.dataset.width === String(width)) continue;
      place.dataset.width = width;
      place.replaceChildren(draw(data, width));
    }
  }

  progress({ items, note }) {
    const all = items.flatMap(({ text, share, command }) => {
      const fill = node("span", "fill");
      fill.style.width = `${100 * share}%`;
      return [node("p", "", text), node("div", "track", fill), command ? node("pre", "", command) : ""];
    });
    return [note ? node("p", "note", note) : "", ...all];
  }

  links({ items }) {
    return items.map(({ link, why }) => node("p", "next", this.link(link, "", link.text), node("span", "note", why)));
  }
}

const reports = new WeakMap();

export default function (component) {
  const root = component.parentElement;
  if (!reports.has(root)) reports.set(root, new Report(root.querySelector(".report")));
  const shown = reports.get(root);
  shown.update(component);
  return () => { shown.live.stop(); shown.resize.disconnect(); reports.delete(root); };
}
