"use strict";
// The part-of forest of the shown masks: selection, order, levels, and the owner of each pixel.
//
// A label set can hold hundreds of masks, so only the best-scoring ones are shown. A mask whose parent is not shown
// becomes a part of its nearest shown ancestor, or a root. Positions are those in the file; levels count shown masks, 0
// for a root.

const Forest = {
  /**
   * Select the best masks, of equal scores the earlier ones.
   * masks: objects with id, parent (an id or null), score and area; limit: maximum number; passes: filter by position.
   * Returns {shown, parent, level, children, roots, depth}: positions ascending, then by position the parent (-1 for a
   * root), the level (-1 for a hidden mask) and the children, larger first; depth is the number of levels.
   */
  select(masks, limit, passes) {
    const position = new Map(masks.map((mask, i) => [mask.id, i]));
    const above = (i) => (masks[i].parent === null ? -1 : position.get(masks[i].parent));
    const ranked = masks.map((_, i) => i).filter(passes);
    ranked.sort((a, b) => masks[b].score - masks[a].score || a - b);
    const shown = ranked.slice(0, limit).sort((a, b) => a - b);
    const kept = new Set(shown);
    const parent = masks.map(() => -1);
    const level = masks.map(() => -1);
    const children = masks.map(() => []);
    const roots = [];
    for (const i of shown) {
      level[i] = 0;
      for (let j = above(i); j >= 0; j = above(j)) {
        if (!kept.has(j)) continue;
        if (parent[i] < 0) parent[i] = j;
        level[i] += 1;
      }
      (parent[i] < 0 ? roots : children[parent[i]]).push(i);
    }
    const bySize = (a, b) => masks[b].area - masks[a].area || masks[a].id - masks[b].id;
    for (const list of [roots, ...children]) list.sort(bySize);
    const depth = shown.reduce((deepest, i) => Math.max(deepest, level[i] + 1), 0);
    return { shown, parent, level, children, roots, depth };
  },

  /** Return the ancestors of a mask, its parent first. */
  ancestors(forest, i) {
    const chain = [];
    for (let j = forest.parent[i]; j >= 0; j = forest.parent[j]) chain.push(j);
    return chain;
  },

  /**
   * Return the painting order that makes a partition of overlapping masks, the last one at a pixel owning it: of all
   * masks of a level up to `deepest` that cover a pixel the deepest owns it, of equally deep ones the smaller, of
   * equally large ones the higher id. So parts are above wholes, and of two overlapping roots the smaller is on top.
   */
  paintingOrder(masks, forest, deepest) {
    const order = forest.shown.filter((i) => forest.level[i] <= deepest);
    const bySize = (a, b) => masks[b].area - masks[a].area || masks[a].id - masks[b].id;
    return order.sort((a, b) => forest.level[a] - forest.level[b] || bySize(a, b));
  },
};
