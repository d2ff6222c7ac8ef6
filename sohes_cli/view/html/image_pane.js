"use strict";
// A photograph with its masks: an <img> below three canvases, so that no canvas holds pixels of a file and all can be
// read.
//
// `fill` has each pixel in the opaque color of its owner (the tint is the canvas's opacity), `lines` the boundaries,
// and `spot` the highlight of one mask: a veil over the rest, lighter in its ancestors, whose outlines are dashed. The
// owner of a pixel answers to the pointer. Arrays have their pixels in column order, as run-length masks do.

class ImagePane {
  /**
   * photo, name: path and name of the photograph; height, width: of photograph and masks; masks: objects with `counts`;
   * onPoint, onSelect: called with the position of a mask, or -1 for the background.
   */
  constructor({ photo, name, height, width, masks, onPoint, onSelect }) {
    Object.assign(this, { height, width, masks });
    this.ends = masks.map((mask) => Rle.ends(mask.counts));
    this.edges = [];
    this.thickness = Math.max(height, width) > 900 ? 2 : 1;
    this.owner = new Uint16Array(height * width);
    this.spot = new Uint16Array(height * width);
    this.scratch = new Uint8Array(height * width);
    this.image = new ImageData(width, height);
    const canvas = (layer) => [layer, Dom.make("canvas", { class: layer, width, height })];
    this.layers = Object.fromEntries(["fill", "lines", "spot"].map(canvas));
    const image = Dom.make("img", { src: photo, alt: `Photograph ${name}`, draggable: "false" });
    this.element = Dom.make("div", { class: "stage" }, image, ...Object.values(this.layers));
    this.element.style.setProperty("--ratio", width / height);
    this.element.style.setProperty("--width", width);
    this.listen(onPoint, onSelect);
  }

  listen(onPoint, onSelect) {
    let last = -1;
    const point = (i) => {
      if (i !== last) onPoint((last = i));
    };
    this.element.addEventListener("pointermove", (event) => point(this.maskAt(event)));
    this.element.addEventListener("pointerleave", () => point(-1));
    this.element.addEventListener("click", (event) => onSelect(this.maskAt(event)));
  }

  /** Return the position of the mask below the pointer, -1 for the background. */
  maskAt(event) {
    const box = this.layers.fill.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) * this.width) / box.width);
    const y = Math.floor(((event.clientY - box.top) * this.height) / box.height);
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return -1;
    return this.owner[x * this.height + y] - 1;
  }

  /**
   * Paint masks, later ones over earlier ones. order: positions; colors: [red, green, blue] by position; outlines: true
   * for the whole outlines of all masks, false for the boundaries between owners. Returns {masks, covered}: number of
   * owners, and share of pixels with an owner.
   */
  paint(order, colors, outlines) {
    this.owner.fill(0);
    for (const i of order) Rle.fill(this.ends[i], this.owner, i + 1);
    const rgba = new Uint32Array(this.masks.length + 1);
    const dark = new Uint32Array(this.masks.length + 1);
    for (const i of order) {
      rgba[i + 1] = ImagePane.rgba(colors[i], 255);
      dark[i + 1] = ImagePane.rgba(colors[i].map((value) => value / 2), 255);
    }
    this.put("fill", this.owner, rgba);
    this.put("lines", outlines ? this.outlines(order) : this.boundaries(), dark);
    return this.measure();
  }

  measure() {
    const owned = new Uint32Array(this.masks.length + 1);
    for (const value of this.owner) owned[value] += 1;
    return { masks: owned.filter((n, value) => n > 0 && value > 0).length, covered: 1 - owned[0] / this.owner.length };
  }

  /** Return for each pixel of an outline its mask's position + 1, 0 elsewhere. */
  outlines(order) {
    const lines = new Uint16Array(this.owner.length);
    for (const i of order) for (const pixel of this.edgeOf(i)) lines[pixel] = i + 1;
    return lines;
  }

  /** Return for each pixel its owner if a neighbor has another one, else 0. */
  boundaries() {
    const { height, owner } = this;
    const lines = new Uint16Array(owner.length);
    for (let pixel = 0; pixel < owner.length; pixel++) {
      const isBottom = (pixel + 1) % height === 0;
      for (const next of [isBottom ? pixel : pixel + 1, pixel + height < owner.length ? pixel + height : pixel]) {
        if (owner[pixel] !== owner[next]) {
          lines[pixel] = owner[pixel];
          lines[next] = owner[next];
        }
      }
    }
    return lines;
  }

  /**
   * Highlight a mask, or nothing for -1, by a veil over the rest, lighter in closer ancestors.
   * chain: its ancestors, the parent first; colors: by position.
   */
  spotlight(i, chain, colors) {
    this.layers.spot.hidden = i < 0;
    if (i < 0) return;
    const above = chain.toReversed(); // the root first
    const n = above.length;
    // outside, inside each ancestor, inside the mask, its outline, each ancestor's outline
    const table = new Uint32Array(2 * n + 3);
    const codes = this.spot.fill(0);
    above.forEach((ancestor, k) => Rle.fill(this.ends[ancestor], codes, k + 1));
    Rle.fill(this.ends[i], codes, n + 1);
    above.forEach((ancestor, k) => {
      table[k + 1] = ImagePane.rgba([0, 0, 0], 125 - (75 * (k + 1)) / (n + 1));
      table[n + 3 + k] = ImagePane.rgba(colors[ancestor].map((value) => (value + 255) / 2), 255);
      for (const pixel of this.edgeOf(ancestor)) if (this.isDash(pixel)) codes[pixel] = n + 3 + k;
    });
    table[0] = ImagePane.rgba([0, 0, 0], 165);
    table[n + 2] = ImagePane.rgba([255, 255, 255], 255);
    for (const pixel of this.edgeOf(i)) codes[pixel] = n + 2;
    this.put("spot", codes, table);
  }

  /** True for a dash, false for a gap of a dashed outline, along diagonals to show on lines of any direction. */
  isDash(pixel) {
    const dash = 4 * this.thickness;
    return (Math.floor(pixel / this.height) + (pixel % this.height)) % (2 * dash) < dash;
  }

  edgeOf(i) {
    this.edges[i] ??= Rle.edge(this.ends[i], this.height, this.scratch, this.thickness);
    return this.edges[i];
  }

  /** Set each pixel of a canvas to `table[codes[pixel]]`, codes in column order; in tiles, for the cache. */
  put(layer, codes, table) {
    const { height, width } = this;
    const pixels = new Uint32Array(this.image.data.buffer);
    for (let left = 0; left < width; left += 32) {
      for (let top = 0; top < height; top += 32) {
        const [right, bottom] = [Math.min(left + 32, width), Math.min(top + 32, height)];
        for (let x = left; x < right; x++) {
          for (let y = top; y < bottom; y++) pixels[y * width + x] = table[codes[x * height + y]];
        }
      }
    }
    this.layers[layer].getContext("2d").putImageData(this.image, 0, 0);
  }

  /** Pack red, green, blue, alpha into one little-endian number. */
  static rgba([red, green, blue], alpha) {
    return ((alpha << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red)) >>> 0;
  }
}
