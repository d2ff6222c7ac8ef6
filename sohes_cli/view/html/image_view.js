"use strict";
// One image: its photograph with masks beside their tree, or two label sets of it side by side, and the controls.
//
// In the mode "all" every shown mask has its outline and the smallest one answers to the pointer. In the mode
// "partition" the forest is cut at a level and each pixel belongs to one mask or to the background
// (`Forest.paintingOrder`).

class ImageView {
  /** image: the object of its data file; sets: names of the label sets; settings: the reader's, kept between images. */
  constructor(image, sets, settings) {
    Object.assign(this, { image, settings });
    this.pairs = image.sides.map((side) => side.masks.map(() => null));
    for (const [i, j, iou] of image.pairs) {
      this.pairs[0][i] = { partner: j, iou };
      this.pairs[1][j] = { partner: i, iou };
    }
    this.most = Math.max(1, ...image.sides.map((side) => side.masks.length));
    this.pointed = this.selected = { side: 0, i: -1 };
    this.sides = image.sides.map((side, s) => this.makeSide(s, side.masks, sets[s]));
    this.element = Dom.make(
      "div",
      { class: image.sides.length > 1 ? "image-view compared" : "image-view" },
      this.controls(),
      Dom.make("div", { class: "panes" }, ...this.sides.map((side) => side.element)),
    );
    this.showTint();
    this.choose();
  }

  makeSide(s, masks, title) {
    const { photo, file_name: name, shown } = this.image;
    const onPoint = (i) => this.point(s, i);
    const onSelect = (i) => this.select(s, i);
    const pane = new ImagePane({ photo, name, height: shown[0], width: shown[1], masks, onPoint, onSelect });
    const tree = new TreeView({ label: `Masks of ${title}`, onPoint, onSelect });
    const caption = Dom.make("p", { class: "caption" });
    const status = Dom.make("p", { class: "status", role: "status" });
    const unfold = Dom.make("button", { type: "button", onclick: () => tree.setAllOpen(true) }, "Expand all");
    const fold = Dom.make("button", { type: "button", onclick: () => tree.setAllOpen(false) }, "Collapse all");
    const columns = Dom.make(
      "span",
      { class: "columns", "aria-hidden": "true" },
      Dom.make("span", { class: "share" }, "share"),
      Dom.make("span", { class: "score" }, "score"),
    );
    const head = Dom.make("div", { class: "forest-head" }, status, unfold, fold, columns);
    const heading = this.image.sides.length > 1 ? Dom.make("h2", {}, title) : null;
    const element = Dom.make(
      "section",
      { class: "pane", "aria-label": `Labels ${title}` },
      Dom.make("div", { class: "picture" }, heading, pane.element, caption),
      Dom.make("div", { class: "forest" }, head, tree.element),
    );
    return { masks, pane, tree, caption, status, element, forest: null, colors: [] };
  }

  controls() {
    const { settings } = this;
    const slider = (label, name, attributes, values = {}) =>
      Dom.slider(label, { class: name, ...attributes }, (value) => this.change({ [name]: value, ...values }));
    this.level = slider("Level", "level", { min: 0, step: 1 }, { mode: "partition" });
    this.limit = slider("Masks", "limit", { min: 1, max: this.most, step: 1 });
    this.tint = slider("Tint", "tint", { min: 0, max: 100, step: 5, value: settings.tint });
    this.limit.input.value = settings.limit;
    const modes = [
      ["all", "All masks"],
      ["partition", "Partition"],
    ];
    const filters = [
      ["all", "All"],
      ["matched", "Matched"],
      ["unmatched", "Unmatched"],
    ];
    this.modes = Dom.choice("What is shown", "mode", modes, settings.mode, (mode) => this.change({ mode }));
    const onFilter = (filter) => this.change({ filter });
    const filter = Dom.choice("Which masks", "filter", filters, settings.filter, onFilter);
    const isCompared = this.image.sides.length > 1;
    const parts = [this.modes, this.level.element, this.limit.element, this.tint.element, isCompared ? filter : null];
    const attributes = { class: "controls", role: "group", "aria-label": "View" };
    return Dom.make("div", attributes, ...parts.filter(Boolean));
  }

  change(values) {
    Object.assign(this.settings, values);
    if ("limit" in values || "filter" in values) this.choose();
    else if ("tint" in values) this.showTint();
    else this.draw();
  }

  /** Select the shown masks, lay out their trees, and draw. */
  choose() {
    const { filter, limit } = this.settings;
    const isFiltered = this.image.sides.length > 1 && filter !== "all";
    this.sides.forEach((side, s) => {
      const passes = (i) => !isFiltered || (this.pairs[s][i] !== null) === (filter === "matched");
      side.forest = Forest.select(side.masks, limit, passes);
      side.colors = Palette.colors(side.masks, side.forest);
      side.tree.render(side.forest, (i) => this.describe(s, i));
    });
    const { side, i } = this.selected;
    if (i >= 0 && this.sides[side].forest.level[i] < 0) this.selected = { side, i: -1 };
    this.limit.output.textContent = limit >= this.most ? "all" : `${limit} of ${this.most}`;
    this.draw();
  }

  draw() {
    const { mode } = this.settings;
    const deepest = Math.max(0, ...this.sides.map((side) => side.forest.depth - 1));
    const level = Math.min(this.settings.level ?? deepest, deepest);
    this.level.input.max = deepest;
    this.level.input.value = level;
    this.level.input.disabled = deepest === 0;
    this.level.output.textContent = `${level} of ${deepest}`;
    this.modes.querySelector(`[value=${mode}]`).checked = true;
    this.element.dataset.mode = mode;
    for (const side of this.sides) this.drawSide(side, mode, level);
    this.refresh();
  }

  drawSide(side, mode, level) {
    const { masks, forest, colors } = side;
    if (mode === "partition") {
      const { masks: n, covered } = side.pane.paint(Forest.paintingOrder(masks, forest, level), colors, false);
      const share = Words.coverage(covered);
      side.status.textContent = `Level ${level}: ${Words.count(n, "mask")}, ${share} of pixels covered`;
    } else {
      const order = forest.shown.toSorted((a, b) => masks[b].area - masks[a].area || masks[a].id - masks[b].id);
      side.pane.paint(order, colors, true);
      const some = order.length < masks.length ? `${order.length} of ` : "";
      const trees = Words.count(forest.roots.length, "tree");
      side.status.textContent = `${some}${Words.count(masks.length, "mask")} in ${trees}`;
    }
    side.tree.setLevel(mode === "partition" ? level : null);
  }

  showTint() {
    this.tint.output.textContent = `${this.settings.tint}%`;
    this.element.style.setProperty("--tint", this.settings.tint / 100);
  }

  point(side, i) {
    this.pointed = { side, i };
    this.refresh();
  }

  /** Pin a mask, or unpin it if it is pinned; -1 unpins. */
  select(side, i) {
    const isSame = this.selected.side === side && this.selected.i === i;
    this.selected = { side, i: isSame ? -1 : i };
    if (this.selected.i >= 0) {
      this.sides[side].tree.reveal(i);
      const pair = this.pairs[side][i];
      if (pair && this.sides.length > 1) this.sides[1 - side].tree.reveal(pair.partner);
    }
    this.refresh();
  }

  unpin() {
    this.select(this.selected.side, -1);
  }

  /** Highlight the mask below the pointer, or else the pinned one, and its match on the other side. */
  refresh() {
    const target = this.pointed.i >= 0 ? this.pointed : this.selected;
    this.sides.forEach((side, s) => {
      const pair = target.i >= 0 ? this.pairs[target.side][target.i] : null;
      const i = s === target.side ? target.i : (pair?.partner ?? -1);
      const chain = i >= 0 ? Forest.ancestors(side.forest, i) : [];
      side.pane.spotlight(i, chain, side.colors);
      side.tree.mark(this.selected.side === s ? this.selected.i : -1, i, chain);
      side.caption.replaceChildren(...this.captionOf(s, i, target));
      side.element.dataset.pointed = i >= 0 ? side.masks[i].id : "";
      side.element.dataset.ancestors = chain.map((j) => side.masks[j].id).join(" ");
    });
  }

  captionOf(s, i, target) {
    if (i < 0 && target.i >= 0) return ["No mask here matches."];
    const help = "Point at a mask, or click to pin it. In the tree, arrow keys move and Enter pins; Esc unpins.";
    if (i < 0) return [help];
    const { masks, forest } = this.sides[s];
    const chain = Forest.ancestors(forest, i).map((j) => `#${masks[j].id}`);
    const facts = [
      forest.level[i] < 0 ? "not among the masks shown" : `level ${forest.level[i]}`,
      `score ${masks[i].score.toFixed(3)}`,
      `${this.share(masks[i])} of the image`,
    ];
    if (chain.length) facts.push(`part of ${chain.join(" in ")}`);
    if (this.sides.length > 1) facts.push(this.matchOf(s, i));
    return [Dom.make("strong", {}, `#${masks[i].id}`), ` · ${facts.join(" · ")}`];
  }

  matchOf(s, i) {
    const pair = this.pairs[s][i];
    return pair ? `IoU ${pair.iou.toFixed(2)} with #${this.sides[1 - s].masks[pair.partner].id}` : "unmatched";
  }

  /** Make the row of a mask in the tree. */
  describe(s, i) {
    const { masks, colors } = this.sides[s];
    const mask = masks[i];
    const isCompared = this.sides.length > 1;
    const swatch = Dom.make("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.backgroundColor = `rgb(${colors[i].join(" ")})`;
    const pair = this.pairs[s][i];
    const cells = [
      swatch,
      Dom.make("span", { class: "id" }, `#${mask.id}`),
      isCompared ? Dom.make("span", { class: "match" }, pair ? `IoU ${pair.iou.toFixed(2)}` : "unmatched") : null,
      Dom.make("span", { class: "share" }, this.share(mask)),
      Dom.make("span", { class: "score" }, mask.score.toFixed(3)),
    ];
    const label = `Mask ${mask.id}, ${this.share(mask)} of the image, score ${mask.score.toFixed(3)}`;
    const match = isCompared ? `, ${this.matchOf(s, i)}` : "";
    return { label: label + match, cells, kind: isCompared ? (pair ? "matched" : "unmatched") : null };
  }

  share(mask) {
    return Words.percentage(mask.area / Math.max(this.image.height * this.image.width, 1));
  }
}
