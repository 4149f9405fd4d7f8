"use strict";
// Numbers with units, and elements whose text is always set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function scaled(value, units, base) {
  let i = 0;
  while (Math.abs(value) >= base && i < units.length - 1) {
    value /= base;
    i += 1;
  }
  return [value, units[i]];
}

// Three significant digits, whole numbers in full; powers of ten where a number is very small or large.
function plain(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6)
    return value
      .toExponential(2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  return size >= 100 ? String(Math.round(value)) : String(Number(value.toPrecision(4)));
}

function bytes(value) {
  const [shown, unit] = scaled(value, ["B", "kB", "MB", "GB", "TB"], 1000);
  return `${Number(shown.toPrecision(3))} ${unit}`;
}

function count(value) {
  const [shown, unit] = scaled(value, ["", "k", "M", "G", "T", "P", "E"], 1000);
  return `${Number(shown.toPrecision(3))}${unit && " " + unit}`;
}

function seconds(value) {
  if (value < 120) return `${Number(value.toPrecision(3))} s`;
  return value < 7200 ? `${Number((value / 60).toPrecision(3))} min` : `${Number((value / 3600).toPrecision(3))} h`;
}

function percent(value) {
  return `${Number((100 * value).toPrecision(3))} %`;
}

function last(values) {
  return values[values.length - 1];
}

// The place of the number in an ascending list that is nearest to `wanted`.
function nearest(values, wanted) {
  let low = 0,
    high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle;
    else high = middle;
  }
  return Math.abs(values[low] - wanted) <= Math.abs(values[high] - wanted) ? low : high;
}

// A row of radio buttons that look like one switch. choices: [value, text, disabled].
function radios(name, title, choices, chosen, onchange) {
  const set = element("fieldset", {}, element("legend", {}, title));
  for (const [value, text, disabled] of choices) {
    const input = element("input", { type: "radio", name, value });
    input.checked = value === chosen;
    input.disabled = Boolean(disabled);
    input.addEventListener("change", () => onchange(value));
    set.append(element("label", {}, input, element("span", {}, text)));
  }
  return set;
}

function checkbox(text, checked, onchange) {
  const input = element("input", { type: "checkbox" });
  input.checked = checked;
  input.addEventListener("change", () => onchange(input.checked));
  return element("label", { class: "tick" }, input, text);
}

// A note that follows the pointer inside `frame`; lines: the first is the heading.
function showTip(tip, frame, x, y, lines) {
  tip.replaceChildren(element("b", {}, lines[0]), ...lines.slice(1).map((line) => element("div", {}, line)));
  tip.hidden = false;
  const room = frame.clientWidth - tip.offsetWidth;
  tip.style.left = `${Math.max(0, Math.min(room, x + 14 > room ? x - tip.offsetWidth - 14 : x + 14))}px`;
  tip.style.top = `${Math.max(0, y)}px`;
}
