"use strict";
// Elements of the page. Text from a file enters only as text or as an attribute, never as HTML.

const Dom = {
  /** Make an element; `on...` adds a listener, a false or null attribute is left out, a string child is text. */
  make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  },

  /** Make a range input with its label and an output for its value in words. */
  slider(label, attributes, onInput) {
    const output = Dom.make("output");
    const oninput = () => onInput(Number(input.value));
    const input = Dom.make("input", { type: "range", "aria-label": label, ...attributes, oninput });
    const element = Dom.make("label", { class: "slider" }, Dom.make("span", {}, label), input, output);
    return { input, output, element };
  },

  /** Make a group of radio buttons. */
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
  /** Format a count with its noun: 1 mask, 2 masks. */
  count(n, noun) {
    return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
  },

  /** Format a share in percent with two significant digits. */
  percentage(share) {
    const percent = 100 * share;
    return percent >= 10 || percent === 0 ? `${percent.toFixed(0)}%` : `${Number(percent.toPrecision(2))}%`;
  },

  /** Format a share in percent with one decimal, rounded down, so that 100% means all. */
  coverage(share) {
    return `${(Math.floor(1000 * share) / 10).toFixed(1)}%`;
  },
};
