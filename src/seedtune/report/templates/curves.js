// The charts of all runs: which curves there are, over what, and the switches above them.

const X_AXES = {
  rounds: ["rounds", (value) => plain(value)],
  forwards: ["forwards", count],
  flops: ["FLOPs", count],
  bytes: ["bytes sent", bytes],
  seconds: ["seconds", seconds],
};
const CHARTS = [
  {
    title: "Loss (nats)",
    format: plain,
    level: "loss",
    hasSurges: true,
    canLog: true,
    lines: [
      ["loss", "test", {}],
      ["heldout_loss", "held out", { dash: "2 3" }],
      ["train_loss", "training", { minor: true }],
    ],
  },
  {
    title: "Accuracy",
    format: percent,
    level: "accuracy",
    hasGuides: true,
    lines: [
      ["accuracy", "test", {}],
      ["heldout_accuracy", "held out", { dash: "2 3" }],
    ],
  },
  { title: "Perplexity", format: plain, level: "perplexity", canLog: true, lines: [["perplexity", "test", {}]] },
  {
    title: "Bytes sent, up and down",
    format: bytes,
    lines: [
      ["bytes_up", "up", {}],
      ["bytes_down", "down", { dash: "7 3" }],
    ],
  },
  {
    title: "Learning rate, before a client's own",
    format: plain,
    autoLog: true,
    lines: [
      ["learning_rate", "rate", {}],
      ["learning_rate_2", "block 2", { dash: "7 3" }],
    ],
  },
  { title: "Projected gradients (root mean square)", format: plain, autoLog: true, lines: [["scalar_rms", "RMS", {}]] },
];
const MANY_RUNS = 4; // from which on one switch is for all of them
const LOG_FROM = 10; // values that span a larger factor begin on a logarithmic scale

const usesMinor = (kind, runs) => runs.some((run) => run.y[kind]);

function spansMuch(runs) {
  const values = runs
    .flatMap((run) => [...(run.y.loss ?? []), ...(run.y.train_loss ?? [])])
    .filter((value) => value > 0);
  return (
    values.length > 0 && values.reduce((a, b) => Math.max(a, b)) / values.reduce((a, b) => Math.min(a, b)) > LOG_FROM
  );
}

function isLogarithmic(what, lines, state) {
  if (what.canLog) return state.isLog;
  const values = what.autoLog ? lines.flatMap((line) => line.y).filter((value) => value !== null) : [];
  const low = values.reduce((a, b) => Math.min(a, b), Infinity),
    high = values.reduce((a, b) => Math.max(a, b), 0);
  return low > 0 && high / low > LOG_FROM;
}

function specOf(what, runs, state) {
  const [xLabel, xFormat] = X_AXES[state.x];
  const shown = runs
    .map((run, index) => ({ run, index }))
    .filter(({ run, index }) => state.on[index] && run.x[state.x]);
  const lines = shown.flatMap(({ run, index }) =>
    what.lines
      .filter(([kind]) => run.y[kind] && (state.kinds[kind] ?? true))
      .map(([kind, name, style]) => ({
        run: index,
        name: [runs.length > 1 ? run.label : "", what.lines.length > 1 || runs.length === 1 ? name : ""]
          .filter(Boolean)
          .join(", "),
        x: run.x[state.x],
        y: run.y[kind],
        joined: kind !== "train_loss",
        ...style,
      })),
  );
  const levels = shown
    .filter(({ run }) => what.level && run.backpropagation[what.level] !== null)
    .map(({ run, index }) => ({
      run: index,
      y: run.backpropagation[what.level],
    }));
  const surges = what.hasSurges
    ? shown.flatMap(({ run }) => run.surges.map((at) => run.x[state.x][nearest(run.x.rounds, at)]))
    : [];
  return {
    title: what.title,
    xLabel,
    xFormat,
    yFormat: what.format,
    isLog: isLogarithmic(what, lines, state),
    lines,
    levels,
    guides: what.hasGuides ? guidesOf(shown.map(({ run }) => run)) : [],
    surges: surges.slice(0, 40),
  };
}

// Accuracies that need no model, each once; those of runs with other classes stand beside each other.
function guidesOf(runs) {
  const all = runs.flatMap((run) => Object.entries(run.guides).map(([name, y]) => ({ name, y })));
  return all.filter((one, i) => all.findIndex((other) => Math.abs(other.y - one.y) < 0.005) === i);
}

function kindKeys(runs) {
  const isCompared = runs.some((run) => Object.values(run.backpropagation).some((value) => value !== null));
  const keys = [
    ["test", "line", "", usesMinor("loss", runs)],
    ["held out", "line", "2 3", usesMinor("heldout_loss", runs)],
    ["training", "line minor", "", usesMinor("train_loss", runs)],
    ["backpropagation, at its end", "line level", "", isCompared],
  ];
  return keys
    .filter(([, , , isShown]) => isShown)
    .map(([name, look, dash]) => lineKey(name, look, dash));
}

function drawLegend(runs, state, redraw) {
  const legend = document.getElementById("legend");
  if (runs.length > 1) {
    const setAll = (on) => {
      for (const input of legend.querySelectorAll("input")) input.checked = on;
      state.on.fill(on);
      redraw();
    };
    if (runs.length > MANY_RUNS) legend.append(checkbox("all runs", true, setAll));
    runs.forEach((run, index) => {
      const label = checkbox("", true, (on) => {
        state.on[index] = on;
        redraw();
      });
      label.append(swatch(index), run.label);
      legend.append(label);
    });
  }
  legend.append(...kindKeys(runs));
}

function curveNotes(runs) {
  const notes = [];
  const thinned = runs.filter((run) => run.is_thinned).map((run) => run.label);
  if (thinned.length) {
    notes.push(
      `Not every round is drawn (${thinned.join(", ")}): of each stretch of rounds those with the lowest and ` +
        "highest losses and accuracies are; the other curves are read at the same rounds.",
    );
  }
  for (const name of ["forwards", "flops", "bytes", "seconds"]) {
    const without = runs.filter((run) => run.x.rounds && !run.x[name]).map((run) => run.label);
    if (without.length) notes.push(`Not counted in ${X_AXES[name][0]}: ${without.join(", ")}.`);
  }
  if (runs.length > COLOURS * DASHES.length) {
    notes.push(`Looks repeat after ${COLOURS * DASHES.length} runs: switch some of them off to tell the others apart.`);
  }
  return notes.join(" ");
}

function showCurves(runs) {
  const state = {
    x: "rounds",
    isLog: spansMuch(runs),
    on: runs.map(() => true),
    kinds: { train_loss: runs.length === 1 },
  };
  const place = document.getElementById("charts");
  const redraw = () => {
    const present = CHARTS.filter((what) => what.lines.some(([kind]) => runs.some((run) => run.y[kind])));
    const made = present.map((what) => chart(specOf(what, runs, state)));
    place.replaceChildren(...made.map(({ frame }) => frame));
    made.forEach(({ draw }) => draw());
    place.redraw = () => made.forEach(({ draw }) => draw());
    if (!present.length)
      place.replaceChildren(element("p", { class: "empty" }, "No round is whole yet: nothing to draw."));
  };
  const axes = Object.entries(X_AXES).map(([name, [text]]) => [name, text, !runs.some((run) => run.x[name])]);
  const controls = document.getElementById("curve-controls");
  controls.append(
    radios("x-axis", "against", axes, state.x, (value) => {
      state.x = value;
      redraw();
    }),
  );
  if (usesMinor("train_loss", runs)) {
    controls.append(
      checkbox("training loss", state.kinds.train_loss, (on) => {
        state.kinds.train_loss = on;
        redraw();
      }),
    );
  }
  controls.append(
    checkbox("logarithmic losses", state.isLog, (on) => {
      state.isLog = on;
      redraw();
    }),
  );
  drawLegend(runs, state, redraw);
  document.getElementById("curve-notes").textContent = curveNotes(runs);
  redraw();
  onResize(place, () => place.redraw?.());
}
