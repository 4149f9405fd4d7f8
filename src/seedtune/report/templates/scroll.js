// Tables that are wider than the screen show it: a line above them, and a side that fades where more is hidden.

const SCROLL_TEXT = "this table goes on: scroll it sideways ⟷";
const HIDDEN_FROM = 2; // pixels

function hintAtScrolling(box) {
  const hint = element("span", { class: "scroll-hint", "aria-hidden": "true" }, SCROLL_TEXT);
  box.before(hint);
  const update = () => {
    const hidden = box.scrollWidth - box.clientWidth;
    hint.hidden = hidden < HIDDEN_FROM;
    box.classList.toggle("hides-left", box.scrollLeft > HIDDEN_FROM);
    box.classList.toggle("hides-right", hidden - box.scrollLeft > HIDDEN_FROM);
  };
  box.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(box);
  update();
}
