// One chart: lines over one x axis, as SVG, with a cross-hair for pointer and arrow keys.

const COLOURS = 7;
const DASHES = ["", "7 3", "2 3"];
const MARKS = [
  "M0-4a4 4 0 1 0 .01 0Z",
  "M-3.5-3.5h7v7h-7Z",
  "M0-4.6L4.4 3.4H-4.4Z",
  "M0-5L4.4 0 0 5-4.4 0Z",
  "M0 4.6L4.4-3.4H-4.4Z",
  "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
  "M-4.5-2.5l2-2L0-2l2.5-2.5 2 2L2 0l2.5 2.5-2 2L0 2l-2.5 2.5-2-2L-2 0Z",
];
const MOST_MARKS = 14;
const HEIGHT = 250,
  TOP = 14,
  BOTTOM = 34,
  RIGHT = 12;

function look(run) {
  return { colour: `c${run % COLOURS}`, mark: MARKS[run % MARKS.length], dash: DASHES[Math.floor(run / COLOURS) % 3] };
}

function swatch(run) {
  const { colour, mark, dash } = look(run);
  return drawn(
    "svg",
    { viewBox: "0 0 30 14", class: colour, "aria-hidden": "true" },
    drawn("path", { class: "line", d: "M0 7H30", "stroke-dasharray": dash }),
    drawn("path", { class: "mark", d: mark, transform: "translate(15 7)" }),
  );
}

// What a kind of line stands for, whatever its colour.
function lineKey(name, look, dash) {
  const line = drawn("path", { class: look, d: "M0 7H30", "stroke-dasharray": dash });
  const key = drawn("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" }, line);
  return element("span", { class: "kinds" }, key, name);
}

// Round numbers from low to high, about `wanted` of them.
function linearTicks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1)
    ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  const many = Math.log10(high / low) > 3;
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const each of many ? [1] : [1, 2, 5]) ticks.push(each * 10 ** power);
  }
  const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  const thinner = Math.ceil(inside.length / 7);
  const shown = inside.filter((_, i) => i % thinner === 0);
  return shown.length > 1 ? shown : linearTicks(low, high, 4);
}

// A scale from numbers to places. A span of nothing is widened, so that a flat line is drawn in the middle.
function scaleOf(values, from, to, isLog, pad) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === Infinity) {
    low = 0;
    high = 1;
  }
  if (isLog) {
    if (low === high) {
      low /= 2;
      high *= 2;
    }
    const a = Math.log(low),
      b = Math.log(high),
      room = pad * (b - a);
    const at = (value) => from + ((to - from) * (Math.log(value) - a + room)) / (b - a + 2 * room);
    const back = (place) => Math.exp(a - room + ((place - from) * (b - a + 2 * room)) / (to - from));
    return { at, ticks: logTicks(low, high), back };
  }
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 1;
    low -= room;
    high += room;
  }
  const room = pad * (high - low);
  const at = (value) => from + ((to - from) * (value - low + room)) / (high - low + 2 * room);
  const back = (place) => low - room + ((place - from) * (high - low + 2 * room)) / (to - from);
  return { at, ticks: linearTicks(low - room, high + room, 5), back };
}

// A path through the points; broken where a value is missing, unless `joined`.
function pathOf(line, x, y, isLog) {
  const parts = [];
  let pen = "M";
  line.y.forEach((value, i) => {
    if (value === null || (isLog && value <= 0)) {
      if (!line.joined) pen = "M";
      return;
    }
    parts.push(`${pen}${x.at(line.x[i]).toFixed(1)} ${y.at(value).toFixed(1)}`);
    pen = "L";
  });
  return parts.join("");
}

function drawAxes(svg, x, y, width, left, spec) {
  const bottom = HEIGHT - BOTTOM;
  for (const tick of y.ticks) {
    const place = y.at(tick);
    if (place < TOP - 1 || place > bottom + 1) continue;
    svg.append(drawn("path", { class: "grid", d: `M${left} ${place.toFixed(1)}H${width - RIGHT}` }));
    svg.append(drawn("text", { x: left - 6, y: place + 4, "text-anchor": "end" }, spec.yFormat(tick)));
  }
  const levels = spec.isPoints ? [bottom, y.at(0).toFixed(1)] : [bottom];
  for (const level of levels) svg.append(drawn("path", { class: "axis", d: `M${left} ${level}H${width - RIGHT}` }));
  let free = -Infinity;
  for (const tick of spec.xTicks ?? x.ticks) {
    const place = x.at(tick);
    if (place < left - 1 || place > width - RIGHT + 1 || place < free) continue;
    const text = spec.xFormat(tick);
    free = place + text.length * 7 + 10;
    svg.append(drawn("path", { class: "axis", d: `M${place.toFixed(1)} ${bottom}v4` }));
    svg.append(drawn("text", { x: place, y: bottom + 17, "text-anchor": "middle" }, text));
  }
  svg.append(drawn("text", { x: width - RIGHT, y: HEIGHT - 2, "text-anchor": "end" }, spec.xLabel));
}

function drawLine(svg, line, x, y, isLog) {
  const { colour, mark, dash } = look(line.run);
  const kind = line.minor ? " minor" : "";
  svg.append(
    drawn("path", {
      class: `line ${colour}${kind}`,
      d: pathOf(line, x, y, isLog),
      "stroke-dasharray": line.dash ?? dash,
    }),
  );
  const shown = line.y
    .map((value, i) => [line.x[i], value])
    .filter(([, value]) => value !== null && !(isLog && value <= 0));
  const every = Math.max(1, Math.ceil(shown.length / MOST_MARKS));
  if (line.minor && shown.length > 1) return;
  shown.forEach(([at, value], i) => {
    if (i % every && i !== shown.length - 1) return;
    const place = `translate(${x.at(at).toFixed(1)} ${y.at(value).toFixed(1)})`;
    svg.append(drawn("path", { class: `mark ${colour}`, d: mark, transform: place }));
  });
}

// Points with the bounds that they are known to lie in; those of several lines side by side.
function drawPoints(svg, line, x, y) {
  const { colour, mark } = look(line.run);
  for (const i of line.known) {
    const at = x.at(line.x[i]) + line.shift;
    if (line.low[i] !== null) {
      const [low, high] = [y.at(line.low[i]).toFixed(1), y.at(line.high[i]).toFixed(1)];
      const caps = `M${at - 3} ${low}h6M${at - 3} ${high}h6`;
      svg.append(drawn("path", { class: `line ${colour}`, d: `M${at} ${low}V${high}${caps}` }));
    }
    const place = `translate(${at} ${y.at(line.y[i]).toFixed(1)})`;
    svg.append(drawn("path", { class: `mark ${colour}`, d: mark, transform: place }));
  }
}

function drawSurges(svg, spec, x) {
  spec.surges.forEach((at, i) => {
    const place = x.at(at).toFixed(1);
    svg.append(drawn("path", { class: "surge-line", d: `M${place} ${TOP}V${HEIGHT - BOTTOM}` }));
    if (i === 0)
      svg.append(drawn("text", { class: "surge-name", x: place, y: TOP - 3, "text-anchor": "middle" }, "surge"));
  });
}

// Levels that belong to no run, with their names.
function drawGuides(svg, spec, y, left, width) {
  spec.guides.forEach(({ name, y: value }, i) => {
    const place = y.at(value);
    const [x, anchor] = i % 2 ? [left + 4, "start"] : [width - RIGHT, "end"]; // near ones stay apart
    svg.append(drawn("path", { class: "guide", d: `M${left} ${place}H${width - RIGHT}` }));
    const text = `${name}: ${spec.yFormat(value)}`;
    svg.append(drawn("text", { class: "guide-name", x, y: place - 4, "text-anchor": anchor }, text));
  });
}

// What the cross-hair says at x: each line's nearest point.
function readings(spec, at) {
  const told = [];
  for (const line of spec.lines) {
    const places = line.known;
    if (!places.length) continue;
    const i =
      places[
        nearest(
          places.map((place) => line.x[place]),
          at,
        )
      ];
    const elsewhere = line.x[i] === at ? "" : ` (at ${spec.xFormat(line.x[i])})`;
    const isKnown = (line.low?.[i] ?? null) !== null;
    const bounds = isKnown ? ` (${spec.yFormat(line.low[i])} to ${spec.yFormat(line.high[i])})` : "";
    told.push(`${line.name}: ${spec.yFormat(line.y[i])}${bounds}${elsewhere}`);
  }
  const shown = told.length > 12 ? [...told.slice(0, 12), `and ${told.length - 12} more`] : told;
  return [spec.xTold?.(at) ?? `${spec.xFormat(at)} ${spec.xLabel}`, ...shown];
}

function addCross(frame, svg, spec, x) {
  const tip = element("div", { class: "tip", role: "status" });
  const cross = drawn("path", { class: "cross", d: "" });
  const places = [...new Set(spec.lines.flatMap((line) => line.known.map((i) => line.x[i])))].sort((a, b) => a - b);
  let at = null;
  tip.hidden = true;
  svg.append(cross);
  frame.append(tip);
  const show = (i) => {
    at = i;
    const place = x.at(places[i]);
    cross.setAttribute("d", `M${place.toFixed(1)} ${TOP}V${HEIGHT - BOTTOM}`);
    showTip(tip, frame, place, 28, readings(spec, places[i]));
  };
  const hide = () => {
    tip.hidden = true;
    cross.setAttribute("d", "");
  };
  const pointed = (event) => show(nearest(places, x.back(event.clientX - svg.getBoundingClientRect().left)));
  svg.addEventListener("pointermove", pointed);
  svg.addEventListener("pointerdown", pointed);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity, PageUp: -10, PageDown: 10 };
    if (event.key === "Escape") hide();
    if (!(event.key in steps)) return;
    event.preventDefault();
    const from = at ?? (steps[event.key] < 0 ? places.length : -1);
    show(Math.max(0, Math.min(places.length - 1, from + steps[event.key])));
  });
}

// spec: {title, xLabel, xFormat, yFormat, isLog, surges, lines: [{run, name, x, y, minor, dash, joined}], levels,
// guides: [{name, y}]}, and of points with bounds: {isPoints, lines: [{low, high}]}; where x is no plain number:
// {isLogX, xTicks, xPad, xTold}
function chart(spec) {
  const frame = element("figure", { class: "chart" }, element("figcaption", {}, spec.title));
  const lines = (spec.lines = spec.lines.map((line) => ({
    ...line,
    known: line.y.flatMap((value, i) => (value === null || (spec.isLog && value <= 0) ? [] : [i])),
  })));
  if (!lines.some((line) => line.known.length)) {
    frame.append(element("p", { class: "empty" }, "No number to show yet."));
    return { frame, draw: () => {} };
  }
  const xs = [...(spec.xTicks ?? []), ...lines.flatMap((line) => line.known.map((i) => line.x[i]))];
  const levels = [...spec.levels, ...spec.guides].map((level) => level.y);
  const ys = [...lines.flatMap((line) => line.known.map((i) => line.y[i])), ...levels];
  if (spec.isPoints) {
    ys.push(0, ...lines.flatMap((line) => [...line.low, ...line.high]).filter((end) => end !== null));
    lines.forEach((line, i) => (line.shift = (i - (lines.length - 1) / 2) * Math.min(9, 60 / lines.length)));
  }
  const draw = () => {
    const width = Math.max(240, Math.round(frame.clientWidth)),
      measured = scaleOf(ys, HEIGHT - BOTTOM, TOP, spec.isLog, 0.06);
    const left = 14 + 7 * Math.max(...measured.ticks.map((tick) => spec.yFormat(tick).length));
    const x = scaleOf(xs, left, width - RIGHT, spec.isLogX, spec.xPad ?? 0.015);
    const svg = drawn("svg", {
      viewBox: `0 0 ${width} ${HEIGHT}`,
      tabindex: "0",
      role: "img",
      "aria-label": `${spec.title} by ${spec.xLabel}; arrow keys read it out`,
    });
    drawAxes(svg, x, measured, width, left, spec);
    drawSurges(svg, spec, x);
    for (const line of lines) (spec.isPoints ? drawPoints : drawLine)(svg, line, x, measured, spec.isLog);
    drawGuides(svg, spec, measured, left, width);
    for (const level of spec.levels) {
      const place = measured.at(level.y);
      svg.append(
        drawn("path", { class: `line level ${look(level.run).colour}`, d: `M${left} ${place}H${width - RIGHT}` }),
      );
    }
    frame.replaceChildren(frame.firstChild, svg);
    addCross(frame, svg, spec, x);
  };
  return { frame, draw };
}
