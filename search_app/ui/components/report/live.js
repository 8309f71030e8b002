// The strip of arriving predictions. It polls the server: every two seconds while predictions arrive, less often
// otherwise, and never in a hidden tab. The page is not run for it.

const BUSY_MS = 2000, IDLE_MS = 5000, NO_ANSWER_MS = 30000;
const OPEN_DIGITS = 16; // of an image's id, in a link that opens it

// How long ago a moment (ISO 8601) was, in one unit.
function ago(moment) {
  const seconds = Math.max(0, (Date.now() - new Date(moment)) / 1000);
  const [unit, size] = [["day", 86400], ["h", 3600], ["min", 60]].find(([, size]) => seconds >= size) ?? ["s", 1];
  const n = Math.floor(seconds / size);
  return `${number.format(n)} ${unit}${unit === "day" && n !== 1 ? "s" : ""} ago`;
}

class Live {
  constructor(go, refresh) {
    this.go = go;
    this.faces = new Map();
    this.strip = node("div", "faces");
    this.text = node("span", "text");
    this.catchUp = node("button", "plain", "Update this page");
    this.catchUp.type = "button";
    this.catchUp.title = "Update the numbers below";
    this.catchUp.onclick = refresh;
    this.element = node("section", "live", node("span", "pulse"), node("strong", "", "Arriving"), this.text, this.catchUp, this.strip);
    this.element.hidden = true;
    this.seen = () => { if (!document.hidden) this.look(); };
    document.addEventListener("visibilitychange", this.seen);
  }

  // `page`: the version that the page shows, and the link to the newest images. Null hides the strip.
  follow(page) {
    const first = !this.page;
    this.page = page;
    if (!page) this.element.hidden = true;
    else if (first) this.look();
    else if (this.news) this.show(this.news);
  }

  async look() {
    clearTimeout(this.timer);
    if (this.stopped || !this.page || document.hidden) return;
    let pause = NO_ANSWER_MS;
    try {
      const response = await fetch("/v1/arrivals", { cache: "no-store" });
      if (response.ok) {
        this.show(await response.json());
        pause = this.element.hidden ? IDLE_MS : BUSY_MS;
      } else this.element.hidden = true;
    } catch { this.element.hidden = true; } // the server is unreachable: the last numbers may be wrong
    clearTimeout(this.timer);
    if (!this.stopped) this.timer = setTimeout(() => this.look(), pause);
  }

  show(news) {
    this.news = news;
    this.element.hidden = !this.page || (news.last_minute + news.verdicts + news.waiting === 0);
    if (this.element.hidden) return;
    const many = (n, one, more) => `${number.format(n)} ${n === 1 ? one : more}`;
    const parts = [`${many(news.last_minute, "prediction", "predictions")} in the last minute`];
    if (news.newest_seconds !== null) parts[0] += `, the newest ${Math.round(news.newest_seconds)} s ago`;
    if (news.verdicts) parts.push(`${many(news.verdicts, "customer verdict", "customer verdicts")}`);
    if (news.waiting) parts.push(`${many(news.waiting, "event", "events")} in the spool`);
    if (news.unembedded) parts.push(`${many(news.unembedded, "image", "images")} without a vector`);
    this.text.textContent = parts.join(" · ");
    this.catchUp.hidden = news.version === this.page.version;
    this.arrange(news.images);
  }

  // New thumbnails are added at the left; the others keep their elements.
  arrange(images) {
    const first = this.faces.size === 0, wanted = new Set(images.map((one) => one.image_id));
    for (const [id, face] of this.faces) if (!wanted.has(id)) { face.remove(); this.faces.delete(id); }
    images.forEach(({ image_id: id, label, confidence }, place) => {
      let face = this.faces.get(id);
      if (!face) {
        face = node("a", first ? "" : "new", thumbnail(id, label ?? "an image without a label"));
        face.title = [label ?? "no label", confidence?.toFixed(2)].filter(Boolean).join(" ");
        this.faces.set(id, face);
      }
      const { page, params, href } = this.page.newest, open = id.slice(0, OPEN_DIGITS);
      leadTo(face, { page, params: { ...params, open }, href: `${href}&open=${open}` }, this.go);
      if (this.strip.children[place] !== face) this.strip.insertBefore(face, this.strip.children[place] ?? null);
    });
    this.strip.hidden = images.length === 0;
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.seen);
  }
}
