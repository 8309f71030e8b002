// The full image with its boxes and masks drawn over it, in the image's own pixels.

const SVG = "http://www.w3.org/2000/svg";

function node(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined && text !== null) element.textContent = text;
  return element;
}

// Run lengths of a COCO RLE, from its compressed text (6 bits a character, differences after the third run).
function runLengths(text) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let value = 0, shift = 0, more = true;
    while (more && at < text.length) {
      const bits = text.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
      more = (bits & 32) !== 0;
      if (!more && bits & 16) value |= -1 << shift;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

// Paint one mask (column by column, as COCO counts) into `pixels`, RGBA, `width` wide.
function paintMask(mask, pixels, width, height, [red, green, blue]) {
  let position = 0, inside = false;
  for (const run of runLengths(mask.counts || "")) {
    if (inside) {
      for (let at = position; at < position + run && at < width * height; at++) {
        const offset = ((at % height) * width + Math.floor(at / height)) * 4;
        pixels[offset] = red; pixels[offset + 1] = green; pixels[offset + 2] = blue; pixels[offset + 3] = 120;
      }
    }
    position += run;
    inside = !inside;
  }
}

function maskCanvas(masks, width, height, colour) {
  const canvas = node("canvas", "overlay masks");
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (const mask of masks) if (mask.width === width && mask.height === height) paintMask(mask, image.data, width, height, colour);
  context.putImageData(image, 0, 0);
  return canvas;
}

function boxDrawing(boxes, width, height) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "overlay boxes");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const unit = Math.max(width, height) / 100;
  for (const box of boxes) {
    const rect = document.createElementNS(SVG, "rect");
    for (const [name, value] of [["x", box.x], ["y", box.y], ["width", box.width], ["height", box.height]]) rect.setAttribute(name, value);
    const text = document.createElementNS(SVG, "text");
    text.setAttribute("x", box.x + unit * 0.8);
    text.setAttribute("y", Math.max(box.y - unit * 1.2, unit * 4));
    text.setAttribute("font-size", unit * 4);
    text.textContent = box.score == null ? box.label : `${box.label ?? ""} ${box.score.toFixed(2)}`;
    svg.append(rect, text);
  }
  return svg;
}

// A figure for one image: the thumbnail at once, the full image when it has come, overlays when known.
class Picture {
  constructor() {
    this.element = node("figure", "picture");
    this.frame = node("div", "frame");
    this.switches = node("div", "switches");
    this.element.append(this.frame, this.switches);
  }

  // `ratio` is width / height, so that nothing jumps when the full image arrives.
  show(id, ratio) {
    this.id = id;
    this.frame.style.setProperty("--ratio", ratio);
    this.frame.replaceChildren();
    this.switches.replaceChildren();
    const image = node("img", "full");
    image.alt = "";
    this.frame.classList.remove("bare");
    image.onerror = () => this.frame.classList.add("bare");
    image.src = `/v1/thumbnails/${id}`;
    const full = new Image();
    full.onload = () => {
      if (this.id !== id) return;
      this.frame.classList.remove("bare");
      image.src = full.src;
    };
    full.src = `/v1/images/${id}?view=1`;
    this.frame.append(image);
  }

  overlay(record, prediction) {
    if (!prediction || !record.width) return;
    const { width, height } = record;
    const layers = [];
    if (prediction.masks?.length) {
      const canvas = maskCanvas(prediction.masks, width, height, [240, 140, 60]);
      layers.push(["1 mask", "masks", prediction.masks.length, canvas]);
    }
    if (prediction.boxes?.length) layers.push(["1 box", "boxes", prediction.boxes.length, boxDrawing(prediction.boxes, width, height)]);
    for (const [one, many, count, layer] of layers) {
      this.frame.append(layer);
      const label = node("label", "switch");
      const box = node("input");
      box.type = "checkbox";
      box.checked = true;
      box.onchange = () => { layer.style.display = box.checked ? "" : "none"; };
      label.append(box, count === 1 ? one : `${count} ${many}`);
      this.switches.append(label);
    }
  }
}
