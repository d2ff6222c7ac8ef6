"use strict";
// Elements of the page, made from names and values. Text from a file only ever enters as text or as an attribute, never as HTML.

const Dom = {
  /** An element with attributes and children; `on...` gives a listener, a false or null attribute is left out, a string child is text. */
  make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  },

  /** A range input with its label and a place for its value in words. */
  slider(label, attributes, onInput) {
    const output = Dom.make("output");
    const input = Dom.make("input", { type: "range", "aria-label": label, ...attributes, oninput: () => onInput(Number(input.value)) });
    return { input, output, element: Dom.make("label", { class: "slider" }, Dom.make("span", {}, label), input, output) };
  },

  /** Buttons of which one is pressed, as a group of radio buttons. */
  choice(label, name, options, value, onChange) {
    const buttons = options.map(([key, text]) =>
      Dom.make(
        "label",
        {},
        Dom.make("input", { type: "radio", name, value: key, checked: key === value, onchange: () => onChange(key) }),
        Dom.make("span", {}, text),
      ),
    );
    return Dom.make("div", { class: "choice", role: "radiogroup", "aria-label": label }, ...buttons);
  },
};

const Words = {
  /** A count with its noun: 1 mask, 2 masks. */
  count(n, noun) {
    return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
  },

  /** A share in percent, with two digits that count. */
  percentage(share) {
    const percent = 100 * share;
    return percent >= 10 || percent === 0 ? `${percent.toFixed(0)}%` : `${Number(percent.toPrecision(2))}%`;
  },

  /** A share in percent with one decimal, rounded down, so that only what is whole is called 100%. */
  coverage(share) {
    return `${(Math.floor(1000 * share) / 10).toFixed(1)}%`;
  },
};
