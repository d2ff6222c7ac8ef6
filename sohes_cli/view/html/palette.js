"use strict";
// One color for each shown mask, as in the pictures of `sohes view --out`: a hue for each tree, far apart for roots
// whose boxes meet, parts in lighter and darker shades near their tree's hue. Colors are in OKLCH, where equal steps
// look equal.

const Palette = (() => {
  const HUES = 12;
  const FIRST_HUE = 45 / 360;
  const HUE_STEP = 5; // 150 degrees, coprime to the number of hues
  const HUE_JITTER = 0.4; // of the angle between two hues
  const GOLDEN = (Math.sqrt(5) - 1) / 2;
  const ROOT_LIGHTNESS = 0.68;
  const ROOT_CHROMA = 0.17;
  const [DARKEST, LIGHTEST, LIGHTNESS_GAP] = [0.42, 0.9, 0.1];

  const fraction = (value) => value - Math.floor(value);

  function boxesMeet([ax, ay, aw, ah], [bx, by, bw, bh]) {
    return ax <= bx + bw && bx <= ax + aw && ay <= by + bh && by <= ay + ah;
  }

  function distance(hue, others) {
    const distances = others.map((other) => Math.min(Math.abs(hue - other), 1 - Math.abs(hue - other)));
    return distances.length ? Math.min(...distances) : 0.5;
  }

  /** Choose a hue for each root from a wheel: farthest from roots whose boxes it meets, then least used. */
  function rootHues(boxes) {
    const wheel = Array.from({ length: HUES }, (_, i) => fraction(FIRST_HUE + (i * HUE_STEP) / HUES));
    const chosen = [];
    for (const box of boxes) {
      const near = chosen.filter((_, k) => boxesMeet(box, boxes[k]));
      const uses = (hue) => chosen.filter((other) => other === hue).length;
      const ranked = wheel.map((hue) => ({ hue, gap: distance(hue, near), uses: uses(hue) }));
      chosen.push(ranked.sort((a, b) => b.gap - a.gap || a.uses - b.uses)[0].hue);
    }
    return chosen;
  }

  /** Return lightness, chroma and hue of a tree's k-th part, distinct from its parent and the parts before it. */
  function shade(parentLightness, hue, k) {
    const below = Math.max(parentLightness - LIGHTNESS_GAP - DARKEST, 0);
    const above = Math.max(LIGHTEST - parentLightness - LIGHTNESS_GAP, 0);
    const at = fraction(0.85 + k * GOLDEN) * (below + above);
    const lightness = at < below ? DARKEST + at : LIGHTEST - (below + above - at);
    const jitter = ((2 * fraction((k + 1) * GOLDEN ** 2) - 1) * HUE_JITTER) / HUES;
    return [lightness, ROOT_CHROMA * (k % 2 ? 0.75 : 1), hue + jitter];
  }

  function byte(linear) {
    const clipped = Math.min(Math.max(linear, 0), 1);
    return Math.round(255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055));
  }

  /** Convert OKLCH to sRGB (Ottosson 2020), less saturated where out of gamut. */
  function rgb([lightness, chroma, hue]) {
    for (;;) {
      const a = chroma * Math.cos(2 * Math.PI * hue);
      const b = chroma * Math.sin(2 * Math.PI * hue);
      const long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
      const medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
      const short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
      const linear = [
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.707614701 * short,
      ];
      if (chroma < 0.01 || linear.every((value) => value >= -1e-4 && value <= 1 + 1e-4)) return linear.map(byte);
      chroma *= 0.97;
    }
  }

  /** Return [red, green, blue] in 0..255 of each shown mask by position. */
  function colors(masks, forest) {
    const lch = [];
    const hues = rootHues(forest.roots.map((root) => masks[root].bbox));
    forest.roots.forEach((root, r) => {
      lch[root] = [ROOT_LIGHTNESS, ROOT_CHROMA, hues[r]];
      const parts = forest.children[root].map((child) => [root, child]);
      for (let k = 0; k < parts.length; k++) {
        const [parent, node] = parts[k];
        lch[node] = shade(lch[parent][0], hues[r], k);
        parts.push(...forest.children[node].map((child) => [node, child])); // appended in the loop: breadth first
      }
    });
    return lch.map(rgb);
  }

  return { colors };
})();
