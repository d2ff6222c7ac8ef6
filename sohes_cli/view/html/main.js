"use strict";
// The page: navigation and data of the image in the address. An image is opened by its name after the #, so that each
// has an address. Its data comes as a script that calls `receiveImage`: pages opened from a folder may not fetch files.

const Page = {
  index: null,
  gallery: null,
  view: null,
  settings: { mode: "all", level: null, limit: 60, tint: 45, filter: "all" },
  waiting: new Map(),
  last: null,
  scroll: 0,
  main: document.querySelector("main"),
  heading: document.querySelector("h1"),
  facts: document.querySelector("#facts"),
  navigation: document.querySelector("#navigation"),

  /** Run a script of the report; it can run again. */
  load(path) {
    return new Promise((resolve, reject) => {
      const script = Dom.make("script", { src: path });
      script.onload = resolve;
      const message = `${path} cannot be loaded: the report folder is not complete. Write the report again.`;
      script.onerror = () => reject(new Error(message));
      document.head.append(script);
    }).finally(() => document.head.querySelector(`script[src="${path}"]`)?.remove());
  },

  async start() {
    try {
      await Page.load("data/index.js");
      Page.settings.limit = Page.index.max_masks;
      Page.gallery = new Gallery(Page.index, Page.addressOf);
      window.addEventListener("hashchange", () => Page.show());
      document.addEventListener("keydown", (event) => Page.onKey(event));
      await Page.show();
    } catch (error) {
      Page.fail(error);
    }
  },

  addressOf(fileName) {
    return `#${encodeURIComponent(fileName).replaceAll("%2F", "/")}`;
  },

  /** Return the name after the #, or null if it is malformed. */
  nameInAddress() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return null;
    }
  },

  async show() {
    const name = Page.nameInAddress();
    if (name === "") {
      Page.showGallery();
      return;
    }
    const entry = Page.index.images.find((image) => image.file_name === name);
    if (!entry) {
      Page.around("No such image", `This report has no image ${name ?? location.hash}.`, []);
      Page.main.replaceChildren();
      return;
    }
    if (Page.main.firstElementChild === Page.gallery.element) Page.scroll = window.scrollY;
    try {
      const image = await Page.dataOf(entry);
      if (Page.nameInAddress() === name) Page.showImage(image, entry);
    } catch (error) {
      Page.fail(error);
    }
  },

  async dataOf(entry) {
    const received = new Promise((resolve) => Page.waiting.set(entry.number, resolve));
    await Page.load(`data/${String(entry.number).padStart(6, "0")}.js`);
    return received;
  },

  showGallery() {
    const { sets, images } = Page.index;
    Page.around(sets.join(" and "), `${Words.count(images.length, "image")}`, []);
    Page.main.replaceChildren(Page.gallery.element);
    window.scrollTo(0, Page.scroll);
    if (Page.last !== null) Page.gallery.focus(Page.last);
  },

  showImage(image, entry) {
    const found = Page.gallery.found.includes(entry) ? Page.gallery.found : Page.index.images;
    const at = found.indexOf(entry);
    const link = (text, other) =>
      other ? Dom.make("a", { href: Page.addressOf(other.file_name) }, text) : Dom.make("span", { class: "off" }, text);
    const all = Dom.make("a", { href: "#" }, "All images");
    const links = [all, link("Previous", found[at - 1]), link("Next", found[at + 1])];
    const lacks = Page.index.sets.length > 1 && !entry.other ? ` · ${Page.index.sets[1]} has no labels of it` : "";
    const facts = `${image.width} × ${image.height} px · ${at + 1} of ${found.length}${lacks}`;
    Page.around(image.file_name, facts, links);
    Page.last = image.file_name;
    Page.view = new ImageView(image, Page.index.sets, Page.settings);
    Page.main.replaceChildren(Page.view.element);
    window.scrollTo(0, 0);
    Page.heading.focus({ preventScroll: true });
  },

  around(title, facts, links) {
    document.title = title;
    Page.heading.textContent = title;
    Page.facts.textContent = facts;
    Page.navigation.replaceChildren(...links);
  },

  fail(error) {
    Page.around("This report cannot be shown", "", [Dom.make("a", { href: "#" }, "All images")]);
    Page.main.replaceChildren(Dom.make("p", { class: "failure", role: "alert" }, error.message));
  },

  /** Focus the search at a slash; unpin at Escape, also without focus on the view. */
  onKey(event) {
    if (event.key === "Escape" && Page.view?.element.isConnected) Page.view.unpin();
    const isTyping = event.target.closest?.("input[type=search], select");
    if (event.key !== "/" || isTyping || !Page.gallery.element.isConnected) return;
    event.preventDefault();
    Page.gallery.search.focus();
  },
};

/** Called by data/index.js. */
function receiveIndex(index) {
  Page.index = index;
}

/** Called by the data script of an image. */
function receiveImage(image) {
  Page.waiting.get(image.number)?.(image);
  Page.waiting.delete(image.number);
}

Page.start();
