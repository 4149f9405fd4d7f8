// Begins here, once the functions above are known.

// Calls back when the width changes; not for changes that the redrawing itself makes.
function onResize(node, redraw) {
  let width = node.clientWidth;
  new ResizeObserver(() => {
    if (node.clientWidth === width) return;
    width = node.clientWidth;
    window.requestAnimationFrame(redraw);
  }).observe(node);
}

{
  const { runs, probes } = JSON.parse(document.getElementById("data").textContent);
  for (const place of document.querySelectorAll(".swatch")) {
    place.append(swatch(Number(place.dataset.run)));
  }
  showCurves(runs);
  showMap(runs);
  showProbes(probes);
  document.querySelectorAll(".scroll").forEach(hintAtScrolling);
  document.documentElement.dataset.drawn = "yes";
}
