"use strict";
// All images of the report as cards, with search and sorting. Cards are added as the reader scrolls towards them and
// thumbnails load when they are near, so that thousands of images cost as much as a screenful.

class Gallery {
  /** index: {sets, images}; addressOf: function from an image's name to the address of its page. */
  constructor(index, addressOf) {
    Object.assign(this, { index, addressOf });
    this.found = [];
    this.n = 0;
    this.isCompared = index.sets.length > 1;
    const find = () => this.find();
    const options = this.orders().map(([key, text]) => Dom.make("option", { value: key }, text));
    const placeholder = "Search by name (press /)";
    this.search = Dom.make("input", { type: "search", placeholder, "aria-label": "Search by name", oninput: find });
    this.order = Dom.make("select", { "aria-label": "Sort", onchange: find }, ...options);
    this.status = Dom.make("p", { class: "status", role: "status" });
    this.list = Dom.make("ul", { class: "cards", onkeydown: (event) => this.onKey(event) });
    this.more = Dom.make("div", { class: "more", "aria-hidden": "true" });
    const controls = Dom.make("div", { class: "controls" }, this.search, this.order, this.status);
    this.element = Dom.make("div", { class: "gallery" }, controls, this.list, this.more);
    const onScroll = (entries) => entries.at(-1).isIntersecting && this.add();
    this.observer = new IntersectionObserver(onScroll, { rootMargin: "800px" });
    this.find();
  }

  orders() {
    const orders = [
      ["name", "By name"],
      ["masks", "Most masks"],
      ["depth", "Deepest"],
    ];
    return this.isCompared ? [...orders, ["matched", "Most matched"], ["unmatched", "Least matched"]] : orders;
  }

  /** Show the images with all words of the search in their names. */
  find() {
    const words = this.search.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const hits = (image) => words.every((word) => image.file_name.toLocaleLowerCase().includes(word));
    const share = (image) => (image.matched ?? 0) / Math.max(image.masks, 1);
    const rank = {
      name: () => 0,
      masks: (image) => -image.masks,
      depth: (image) => -image.depth,
      matched: (image) => -share(image),
      unmatched: share,
    }[this.order.value];
    this.found = this.index.images.filter(hits).sort((a, b) => rank(a) - rank(b) || a.number - b.number);
    const total = Words.count(this.index.images.length, "image");
    this.status.textContent = `${this.found.length.toLocaleString("en")} of ${total}`;
    this.n = 0;
    this.list.replaceChildren();
    this.add();
  }

  add() {
    const next = this.found.slice(this.n, this.n + 60);
    this.n += next.length;
    this.list.append(...next.map((image) => this.card(image)));
    this.observer.unobserve(this.more);
    if (this.n < this.found.length) this.observer.observe(this.more); // anew: reports at once if the end is still near
  }

  card(image) {
    const thumbnail = `thumbs/${String(image.number).padStart(6, "0")}.jpg`;
    const facts = [Words.count(image.masks, "mask"), Words.count(image.trees, "tree"), `depth ${image.depth}`];
    const both = () => `${image.matched} matched of ${image.masks} and ${image.other.masks}`;
    const matches = image.other ? both() : "no labels to compare";
    return Dom.make(
      "li",
      {},
      Dom.make(
        "a",
        { class: "card", href: this.addressOf(image.file_name) },
        Dom.make("img", { src: thumbnail, alt: "", loading: "lazy", decoding: "async", width: 360, height: 270 }),
        Dom.make("span", { class: "name", title: image.file_name }, image.file_name),
        Dom.make("span", { class: "facts" }, facts.join(" · ")),
        this.isCompared ? Dom.make("span", { class: "facts" }, matches) : null,
      ),
    );
  }

  /** Focus an image's card, if present. */
  focus(fileName) {
    const at = this.found.findIndex((image) => image.file_name === fileName);
    while (at >= this.n) this.add();
    this.list.children[at]?.firstElementChild.focus();
  }

  /** Move between cards by arrow keys, Home and End. */
  onKey(event) {
    const cards = [...this.list.children];
    const at = cards.indexOf(event.target.closest("li"));
    const columns = Math.max(1, cards.filter((card) => card.offsetTop === cards[0]?.offsetTop).length);
    const ends = { Home: -at, End: cards.length - 1 - at };
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, ...ends };
    const next = cards[at + steps[event.key]];
    if (!next || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    next.firstElementChild.focus();
  }
}
