"use strict";
// COCO's compressed run-length masks: read a string, fill an array, find the edge. Pixels are in column order, so that
// pixel (x, y) has the index x * height + y. A mask is the ends of its runs, alternating, background first.

const Rle = {
  /** Decode a string to the ends of its runs, ascending; the last one is height * width. */
  ends(counts) {
    const runs = [];
    let at = 0;
    while (at < counts.length) {
      let value = 0;
      let shift = 0;
      let code;
      do {
        code = counts.charCodeAt(at++) - 48;
        value |= (code & 31) << shift;
        shift += 5;
      } while (code & 32);
      if (code & 16 && shift < 32) value |= -1 << shift; // sign extension
      runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    }
    const ends = new Int32Array(runs.length);
    for (let k = 0, end = 0; k < runs.length; k++) ends[k] = end += runs[k];
    return ends;
  },

  /** Write a value at every pixel of a mask into an array of height * width, pixels in column order. */
  fill(ends, target, value) {
    for (let k = 1; k < ends.length; k += 2) target.fill(value, ends[k - 1], ends[k]);
  },

  /**
   * Return the pixels of a mask at most `thickness` from its outside, ascending; the photograph's border is no outside.
   * `scratch` is a Uint8Array of height * width zeros, and is zero again on return.
   */
  edge(ends, height, scratch, thickness) {
    const size = scratch.length;
    const edge = [];
    Rle.fill(ends, scratch, 1);
    for (let k = 1; k < ends.length; k += 2) {
      for (let pixel = ends[k - 1]; pixel < ends[k]; pixel++) {
        const y = pixel % height;
        for (let d = 1; d <= thickness; d++) {
          const left = pixel - d * height;
          const right = pixel + d * height;
          const isEdge =
            (left >= 0 && !scratch[left]) ||
            (right < size && !scratch[right]) ||
            (y >= d && !scratch[pixel - d]) ||
            (y + d < height && !scratch[pixel + d]);
          if (isEdge) {
            edge.push(pixel);
            break;
          }
        }
      }
    }
    Rle.fill(ends, scratch, 0);
    return Int32Array.from(edge);
  },
};
