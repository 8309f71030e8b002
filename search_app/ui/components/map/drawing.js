// Points on a canvas: WebGL2 for a million at every frame; where there is none, pixels written one by one.
//
// A painter is given places (float32 pairs), a code a point, a palette (RGB a code), which are chosen, and a view
// (centre, pixels a unit); it knows nothing of images or lassos. Drawn in layers: outside or without a value, with one,
// chosen.

const OUTSIDE = 254, NONE = 255;

const VERTEX = `#version 300 es
in vec2 place; in uint code; in uint chosen;
uniform vec2 centre, scale; uniform float size; uniform int layer; uniform bool dim; uniform sampler2D palette;
out vec4 colour;
void main() {
  int own = chosen == 1u ? 2 : code >= 254u ? 0 : 1;
  gl_Position = own == layer ? vec4((place - centre) * scale, 0.0, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
  gl_PointSize = own == 2 ? size * 1.3 + 1.0 : size;
  float strength = own == 2 ? 1.0 : dim ? 0.25 : own == 1 ? 0.85 : code == 255u ? 0.5 : 0.3;
  colour = vec4(texelFetch(palette, ivec2(int(code), 0), 0).rgb, strength);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 colour; out vec4 shown;
void main() {
  float away = length(gl_PointCoord - 0.5) * 2.0;
  float strength = colour.a * (1.0 - smoothstep(0.75, 1.0, away));
  shown = vec4(colour.rgb * strength, strength);
}`;

class GLPainter {
  static on(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: false, alpha: true, premultipliedAlpha: true });
    return gl ? new GLPainter(gl) : null;
  }

  constructor(gl) {
    this.gl = gl;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.at = (name) => gl.getUniformLocation(program, name);
    this.buffers = {};
    for (const name of ["place", "code", "chosen"]) {
      const place = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name] = gl.createBuffer());
      gl.enableVertexAttribArray(place);
      if (name === "place") gl.vertexAttribPointer(place, 2, gl.FLOAT, false, 0, 0);
      else gl.vertexAttribIPointer(place, 1, gl.UNSIGNED_BYTE, 0, 0);
    }
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.some = false;
  }

  #fill(name, data) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, data, this.gl.STATIC_DRAW);
  }

  places(places) { this.count = places.length / 2; this.#fill("place", places); }
  codes(codes) { this.#fill("code", codes); }
  chosen(chosen, some) { this.some = some; this.#fill("chosen", chosen); }

  palette(palette) {
    const { gl } = this, rgba = new Uint8Array(1024).fill(255);
    for (let code = 0; code < 256; code++) rgba.set(palette[code], 4 * code);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  }

  draw({ x, y, scale, size, width, height, ratio }, most) {
    const { gl } = this;
    gl.viewport(0, 0, width * ratio, height * ratio);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(this.at("centre"), x, y);
    gl.uniform2f(this.at("scale"), (2 * scale) / width, (2 * scale) / height);
    gl.uniform1f(this.at("size"), size * ratio);
    gl.uniform1i(this.at("dim"), this.some ? 1 : 0);
    for (const layer of this.some ? [0, 1, 2] : [0, 1]) {
      gl.uniform1i(this.at("layer"), layer);
      gl.drawArrays(gl.POINTS, 0, Math.min(this.count, most));
    }
  }

  free() { this.gl.getExtension("WEBGL_lose_context")?.loseContext(); }
}

class PixelPainter {
  constructor(canvas) { this.context = canvas.getContext("2d"); this.some = false; }

  places(places) { this.at = places; this.count = places.length / 2; }
  codes(codes) { this.code = codes; }
  chosen(chosen, some) { this.picked = chosen; this.some = some; }
  palette(palette) { this.colours = palette; }

  draw({ x, y, scale, size, width, height, ratio }, most) {
    const wide = Math.round(width * ratio), high = Math.round(height * ratio), each = Math.max(1, Math.round(size * ratio * 0.85));
    const image = this.context.createImageData(wide, high), pixels = new Uint32Array(image.data.buffer);
    const inked = (strength) => Uint32Array.from(this.colours, ([r, g, b]) => ((strength * 255) << 24 | b << 16 | g << 8 | r) >>> 0);
    const inks = this.some ? [inked(0.25), inked(0.25), inked(1)] : [inked(0.4), inked(0.85)];
    for (let layer = 0; layer < (this.some ? 3 : 2); layer++) {
      for (let i = 0; i < Math.min(this.count, most); i++) {
        if ((this.picked[i] ? 2 : this.code[i] >= OUTSIDE ? 0 : 1) !== layer) continue;
        const left = Math.round(((this.at[2 * i] - x) * scale + width / 2) * ratio - each / 2);
        const top = Math.round(((y - this.at[2 * i + 1]) * scale + height / 2) * ratio - each / 2);
        if (left < 0 || top < 0 || left + each > wide || top + each > high) continue;
        const ink = inks[layer][this.code[i]];
        for (let row = top; row < top + each; row++) pixels.fill(ink, row * wide + left, row * wide + left + each);
      }
    }
    this.context.putImageData(image, 0, 0);
  }

  free() {}
}

// Points in square cells, to find the nearest to the mouse without asking all.
class Cells {
  constructor(places) {
    this.places = places;
    const count = places.length / 2;
    this.side = Math.max(1, Math.min(1024, Math.ceil(Math.sqrt(count / 3))));
    const cells = new Uint32Array(count);
    this.starts = new Uint32Array(this.side * this.side + 1);
    for (let i = 0; i < count; i++) {
      cells[i] = this.cell(places[2 * i + 1]) * this.side + this.cell(places[2 * i]);
      this.starts[cells[i] + 1]++;
    }
    for (let at = 0; at < this.side * this.side; at++) this.starts[at + 1] += this.starts[at];
    const next = this.starts.slice(0, -1);
    this.sorted = new Uint32Array(count);
    for (let i = 0; i < count; i++) this.sorted[next[cells[i]]++] = i;
  }

  cell(value) { return Math.max(0, Math.min(this.side - 1, Math.floor(((value + 1) / 2) * this.side))); }

  // The nearest point within `radius` that `accepts`, or -1.
  nearest(x, y, radius, accepts) {
    let best = -1, least = radius * radius;
    for (let row = this.cell(y - radius); row <= this.cell(y + radius); row++) {
      for (let at = this.starts[row * this.side + this.cell(x - radius)]; at < this.starts[row * this.side + this.cell(x + radius) + 1]; at++) {
        const i = this.sorted[at], away = (this.places[2 * i] - x) ** 2 + (this.places[2 * i + 1] - y) ** 2;
        if (away <= least && accepts(i)) { best = i; least = away; }
      }
    }
    return best;
  }
}
