// Clients by rounds as a map of colours, on a canvas: many cells, one element.

// Anchors of cividis (Nuñez, Anderton and Renslow 2018), which reads the same with and without colour vision.
const CIVIDIS = [
  "#00224e",
  "#123570",
  "#3b496c",
  "#575d6d",
  "#707173",
  "#8a8678",
  "#a59c74",
  "#c3b369",
  "#e1cc55",
  "#fee838",
].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const MAP_NAMES = { losses: "training loss", heldout: "held-out loss", rates: "learning rate" };
const MAP_LEFT = 46,
  MAP_BOTTOM = 34,
  MAP_TALLEST = 420;

function colourAt(share) {
  const place = Math.max(0, Math.min(1, share)) * (CIVIDIS.length - 1);
  const i = Math.min(CIVIDIS.length - 2, Math.floor(place));
  const mixed = CIVIDIS[i].map((value, k) => Math.round(value + (place - i) * (CIVIDIS[i + 1][k] - value)));
  return `rgb(${mixed.join(" ")})`;
}

// Colours run from the 1st to the 99th of a hundred values: one surge does not flatten the rest.
function rangeOf(runs, name) {
  const values = runs
    .flatMap((run) => run.maps[name]?.values.flat() ?? [])
    .filter((value) => value !== null)
    .sort((a, b) => a - b);
  const low = values[Math.floor(0.01 * (values.length - 1))],
    high = values[Math.ceil(0.99 * (values.length - 1))];
  const isLog = low > 0 && high / low > 10;
  const share = (value) =>
    high === low ? 0.5 : isLog ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  return {
    low,
    high,
    isLog,
    share: (value) => (isLog && value <= 0 ? 0 : share(value)),
    isCut: values[0] < low || last(values) > high,
  };
}

function spanText([first, to]) {
  return first === to ? `round ${first}` : `rounds ${first} to ${to}`;
}

function mapSize(map, width) {
  const rows = map.clients.length,
    height = Math.min(MAP_TALLEST, Math.max(rows * 4, Math.min(rows * 24, 320)));
  return { cellWidth: (width - MAP_LEFT) / map.spans.length, cellHeight: height / rows, height };
}

function paint(canvas, map, range, width) {
  const size = mapSize(map, width),
    ratio = window.devicePixelRatio || 1,
    pen = canvas.getContext("2d");
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round((size.height + MAP_BOTTOM) * ratio);
  canvas.style.height = `${size.height + MAP_BOTTOM}px`;
  pen.scale(ratio, ratio);
  map.values.forEach((row, r) =>
    row.forEach((value, c) => {
      if (value === null) return;
      const left = MAP_LEFT + c * size.cellWidth,
        top = r * size.cellHeight;
      pen.fillStyle = colourAt(range.share(value));
      pen.fillRect(left, top, Math.ceil(left + size.cellWidth) - left, Math.ceil(top + size.cellHeight) - top);
    }),
  );
  paintAxes(pen, canvas, map, size, width);
  return size;
}

function paintAxes(pen, canvas, map, size, width) {
  const style = getComputedStyle(canvas);
  pen.fillStyle = style.color;
  pen.font = `12px ${style.fontFamily}`;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const every = Math.ceil(15 / size.cellHeight);
  map.clients.forEach((client, r) => {
    if (r % every === 0) pen.fillText(String(client), MAP_LEFT - 6, Math.max(7, (r + 0.5) * size.cellHeight));
  });
  pen.textAlign = "center";
  const step = Math.max(1, Math.ceil(60 / size.cellWidth));
  for (let c = 0; c < map.spans.length; c += step) {
    const place = MAP_LEFT + (c + 0.5) * size.cellWidth;
    if (place < width - 10) pen.fillText(String(map.spans[c][0]), place, size.height + 11);
  }
  pen.textAlign = "right";
  pen.fillText("rounds", width - 2, size.height + 26);
  pen.textAlign = "left";
  pen.fillText("client", 0, size.height + 26);
}

function scaleBar(range, name) {
  const bar = element("canvas", {
    class: "scale",
    width: 256,
    height: 14,
    role: "img",
    "aria-label": `colours from ${plain(range.low)} to ${plain(range.high)}`,
  });
  const pen = bar.getContext("2d");
  for (let i = 0; i < 256; i += 1) {
    pen.fillStyle = colourAt(i / 255);
    pen.fillRect(i, 0, 1, 14);
  }
  const ends = `${range.isCut ? "≤ " : ""}${plain(range.low)} to ${range.isCut ? "≥ " : ""}${plain(range.high)}`;
  const text =
    `${MAP_NAMES[name]}: dark ${ends} bright${range.isLog ? ", logarithmic" : ""}; ` +
    "no colour: no number, as from a client that was not asked or did not answer";
  return [bar, element("p", { class: "note" }, text)];
}

function addReader(frame, canvas, map, size, name) {
  const tip = element("div", { class: "tip", role: "status" });
  const at = { r: 0, c: 0 };
  tip.hidden = true;
  frame.append(tip);
  const show = () => {
    const value = map.values[at.r][at.c],
      shown = value === null ? "no number" : plain(value);
    const isMean = map.spans[at.c][0] !== map.spans[at.c][1];
    showTip(
      tip,
      frame,
      MAP_LEFT + (at.c + 0.5) * size.cellWidth,
      canvas.offsetTop + (at.r + 0.5) * size.cellHeight - 50,
      [
        `client ${map.clients[at.r]}, ${spanText(map.spans[at.c])}`,
        `${isMean ? "mean " : ""}${MAP_NAMES[name]}: ${shown}`,
      ],
    );
  };
  const move = (r, c) => {
    at.r = Math.max(0, Math.min(map.clients.length - 1, r));
    at.c = Math.max(0, Math.min(map.spans.length - 1, c));
    show();
  };
  const pointed = (event) => {
    const box = canvas.getBoundingClientRect();
    move(
      Math.floor((event.clientY - box.top) / size.cellHeight),
      Math.floor((event.clientX - box.left - MAP_LEFT) / size.cellWidth),
    );
  };
  canvas.addEventListener("pointermove", pointed);
  canvas.addEventListener("pointerdown", pointed);
  for (const leaving of ["pointerleave", "blur"])
    canvas.addEventListener(leaving, () => {
      tip.hidden = true;
    });
  canvas.addEventListener("keydown", (event) => {
    const steps = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      Home: [0, -1e9],
      End: [0, 1e9],
    };
    if (event.key === "Escape") tip.hidden = true;
    if (!(event.key in steps)) return;
    event.preventDefault();
    if (tip.hidden) show();
    else move(at.r + steps[event.key][0], at.c + steps[event.key][1]);
  });
}

function mapNotes(run, map) {
  const notes = [];
  if (map && map.clients.length < map.num_clients) {
    notes.push(
      `${map.clients.length} of ${map.num_clients} clients are shown, evenly from the lowest mean over the run ` +
        "(top) to the highest (bottom).",
    );
  }
  if (map && map.rounds_a_column > 1) notes.push(`A column is the mean of up to ${map.rounds_a_column} rounds.`);
  if (run.policy === "fixed")
    notes.push("Every client has the round's learning rate (personalise.policy is fixed): see its curve.");
  else if (!run.maps.rates) notes.push("No client's own learning rate is known yet.");
  return notes.join(" ");
}

function drawMap(runs, state) {
  const run = runs[state.run],
    map = run.maps[state.name],
    place = document.getElementById("map-figure");
  document.getElementById("map-notes").textContent = mapNotes(run, map);
  if (!map) {
    place.replaceChildren(
      element("p", { class: "empty" }, `${run.label}: no ${MAP_NAMES[state.name]} of clients to show.`),
    );
    return;
  }
  const canvas = element("canvas", {
    tabindex: "0",
    role: "img",
    "aria-label": `${MAP_NAMES[state.name]} of clients by rounds; arrow keys read it out`,
  });
  const caption = runs.length > 1 ? `${run.label}: ${MAP_NAMES[state.name]}` : MAP_NAMES[state.name];
  const frame = element("figure", { class: "heat" }, element("figcaption", {}, caption), canvas);
  place.replaceChildren(frame);
  const range = rangeOf(state.isShared ? runs : [run], state.name);
  const size = paint(canvas, map, range, Math.max(200, frame.clientWidth));
  frame.append(...scaleBar(range, state.name));
  addReader(frame, canvas, map, size, state.name);
}

function showMap(runs) {
  const names = Object.keys(MAP_NAMES).filter((name) => runs.some((run) => run.maps[name]));
  if (!names.length) {
    document
      .getElementById("map-figure")
      .append(element("p", { class: "empty" }, "No client has answered yet: nothing to draw."));
    return;
  }
  const state = {
    run: Math.max(
      0,
      runs.findIndex((run) => run.maps[names[0]]),
    ),
    name: names[0],
    isShared: false,
  };
  const redraw = () => drawMap(runs, state);
  const controls = document.getElementById("map-controls");
  if (names.length > 1) {
    controls.append(
      radios(
        "map",
        "colour is",
        names.map((name) => [name, MAP_NAMES[name]]),
        state.name,
        (name) => {
          state.name = name;
          redraw();
        },
      ),
    );
  }
  if (runs.length > 1) {
    const select = element(
      "select",
      { id: "map-run" },
      ...runs.map((run, i) => element("option", { value: i }, run.label)),
    );
    select.value = String(state.run);
    select.addEventListener("change", () => {
      state.run = Number(select.value);
      redraw();
    });
    controls.append(element("label", { for: "map-run", class: "tick" }, "run"), select);
    controls.append(
      checkbox("one colour scale for all runs", false, (on) => {
        state.isShared = on;
        redraw();
      }),
    );
  }
  redraw();
  onResize(document.getElementById("map-figure"), redraw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
