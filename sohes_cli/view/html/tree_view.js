"use strict";
// The forest as a tree for mouse and keyboard, after the tree pattern of the WAI-ARIA Authoring Practices: Tab reaches
// one row, arrows move between rows, open and close them, Enter or Space selects. Pointing at or focusing a row
// highlights its mask.

class TreeView {
  /** label: name of the tree; onPoint, onSelect: called with the position of a mask, onPoint with -1 off the rows. */
  constructor({ label, onPoint, onSelect }) {
    Object.assign(this, { onPoint, onSelect });
    this.closed = new Set(); // positions of collapsed rows, kept while the selection of masks changes
    this.items = new Map();
    this.current = -1;
    this.list = Dom.make("ul", { role: "tree", "aria-label": label, onkeydown: (event) => this.onKey(event) });
    this.list.addEventListener("click", (event) => this.onClick(event));
    this.list.addEventListener("pointerover", (event) => onPoint(this.positionOf(event.target)));
    this.list.addEventListener("pointerleave", () => onPoint(-1));
    this.list.addEventListener("focusin", (event) => {
      this.setCurrent(this.positionOf(event.target));
      if (event.target.matches(":focus-visible")) onPoint(this.current);
    });
    this.list.addEventListener("focusout", () => onPoint(-1));
    this.element = Dom.make("div", { class: "tree" }, this.list);
  }

  /** Show a forest; describe(i) returns {label, cells, kind}: screen reader name, elements and class of its row. */
  render(forest, describe) {
    this.forest = forest;
    this.items.clear();
    this.list.replaceChildren(...forest.roots.map((root) => this.item(root, 1, describe)));
    if (!forest.roots.length) this.list.append(Dom.make("li", { class: "none", role: "none" }, "No masks"));
    this.setCurrent(this.items.has(this.current) ? this.current : (forest.roots[0] ?? -1));
  }

  item(i, ariaLevel, describe) {
    const children = this.forest.children[i];
    const { label, cells, kind } = describe(i);
    const twisty = Dom.make("span", { class: "twisty", "aria-hidden": "true" });
    const item = Dom.make(
      "li",
      {
        role: "treeitem",
        class: kind,
        tabindex: -1,
        "data-position": i,
        "aria-label": label,
        "aria-level": ariaLevel,
        "aria-selected": "false",
        "aria-expanded": children.length ? String(!this.closed.has(i)) : null,
      },
      Dom.make("div", { class: "row", style: `--indent: ${ariaLevel - 1}` }, twisty, ...cells),
    );
    this.items.set(i, item);
    const parts = children.map((child) => this.item(child, ariaLevel + 1, describe));
    if (parts.length) item.append(Dom.make("ul", { role: "group" }, ...parts));
    return item;
  }

  /** Gray the rows of masks below a level; null for none. */
  setLevel(level) {
    for (const [i, item] of this.items) item.classList.toggle("beyond", level !== null && this.forest.level[i] > level);
  }

  /** Mark the selected row and the rows of the highlighted mask and its ancestors. */
  mark(selected, pointed, ancestors) {
    for (const [i, item] of this.items) {
      item.setAttribute("aria-selected", String(i === selected));
      item.classList.toggle("pointed", i === pointed);
      item.classList.toggle("above", ancestors.includes(i));
    }
  }

  /** Expand the ancestors of a row and scroll the tree, not the page, to it. */
  reveal(i) {
    const item = this.items.get(i);
    if (!item) return;
    for (const ancestor of Forest.ancestors(this.forest, i)) this.setOpen(ancestor, true);
    this.setCurrent(i);
    this.scrollTo(item);
  }

  scrollTo(item) {
    const row = item.firstElementChild.getBoundingClientRect();
    const view = this.element.getBoundingClientRect();
    if (row.top < view.top) this.element.scrollTop -= view.top - row.top + 8;
    if (row.bottom > view.bottom) this.element.scrollTop += row.bottom - view.bottom + 8;
  }

  setAllOpen(isOpen) {
    for (const i of this.items.keys()) this.setOpen(i, isOpen);
    let i = this.current;
    while (!isOpen && this.forest.parent[i] >= 0) i = this.forest.parent[i];
    this.setCurrent(i);
  }

  setOpen(i, isOpen) {
    if (!this.forest.children[i].length) return;
    this.closed[isOpen ? "delete" : "add"](i);
    this.items.get(i).setAttribute("aria-expanded", String(isOpen));
  }

  setCurrent(i) {
    this.items.get(this.current)?.setAttribute("tabindex", "-1");
    this.current = i;
    this.items.get(i)?.setAttribute("tabindex", "0");
  }

  positionOf(target) {
    return Number(target.closest?.("[role=treeitem]")?.dataset.position ?? -1);
  }

  onClick(event) {
    const i = this.positionOf(event.target);
    if (i < 0) return;
    this.items.get(i).focus();
    if (event.target.closest(".twisty") && this.forest.children[i].length) this.setOpen(i, this.closed.has(i));
    else this.onSelect(i);
  }

  onKey(event) {
    const i = this.current;
    if (i < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const rows = this.openRows();
    const at = rows.indexOf(i);
    const hasParts = this.forest.children[i].length > 0;
    const moves = {
      ArrowDown: () => rows[at + 1],
      ArrowUp: () => rows[at - 1],
      Home: () => rows[0],
      End: () => rows.at(-1),
      ArrowRight: () => (this.closed.has(i) ? this.setOpen(i, true) : this.forest.children[i][0]),
      ArrowLeft: () => (hasParts && !this.closed.has(i) ? this.setOpen(i, false) : this.forest.parent[i]),
      Enter: () => this.onSelect(i),
      " ": () => this.onSelect(i),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const item = this.items.get(moves[event.key]());
    if (!item) return;
    item.focus({ preventScroll: true });
    this.scrollTo(item);
    const fits = this.element.scrollHeight <= this.element.clientHeight;
    if (fits) item.firstElementChild.scrollIntoView({ block: "nearest" });
  }

  /** Return the positions of all visible rows from top to bottom. */
  openRows() {
    const rows = [];
    const walk = (i) => {
      rows.push(i);
      if (!this.closed.has(i)) this.forest.children[i].forEach(walk);
    };
    this.forest.roots.forEach(walk);
    return rows;
  }
}
