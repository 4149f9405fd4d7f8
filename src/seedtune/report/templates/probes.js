// Charts of what probes found: by layer, or over a scale.

// A layer's name, short enough for an axis.
const short = (name) => name.replace(/^layer (?=\d)/, "").replace(/ the layers$/, "");

function probeSpec(found, isNamed) {
  const { categories } = found;
  return {
    title: found.title,
    xLabel: found.x_label,
    xFormat: categories ? (i) => short(categories[i]) : plain,
    xTold: categories ? (i) => categories[i] : (value) => `${found.x_label} = ${plain(value)}`,
    xTicks: categories?.map((_, i) => i),
    xPad: categories ? 0.5 / Math.max(1, categories.length - 1) : 0.06,
    yFormat: plain,
    isLogX: found.is_log_x,
    isLog: found.is_log_y,
    isPoints: !found.keys.length,
    surges: [],
    levels: [],
    guides: [],
    lines: found.lines.map((line) => ({
      ...line,
      dash: line.dash || undefined,
      joined: true,
      name: isNamed ? `${line.label}, ${line.name}` : line.name,
    })),
  };
}

function showProbes(kinds) {
  for (const place of document.querySelectorAll(".probe-charts")) {
    const { charts, is_named: isNamed } = kinds[place.dataset.kind];
    const made = charts.map((found) => chart(probeSpec(found, isNamed)));
    place.append(...made.map(({ frame }) => frame));
    const keys = charts.find((found) => found.keys.length)?.keys ?? [];
    if (keys.length)
      place.before(
        element(
          "div",
          { class: "legend" },
          ...keys.map(([name, dash], i) => lineKey(name, i ? "line minor" : "line", dash)),
        ),
      );
    const redraw = () => made.forEach(({ draw }) => draw());
    redraw();
    onResize(place, redraw);
  }
}
