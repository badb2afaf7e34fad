"use strict";
(() => {
  // Enlarged images: Escape closes, arrow keys show the next one, a click next to the image closes.
  const close = image => {
    image.open = false;
    image.firstElementChild.focus({ preventScroll: true });
    image.scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("keydown", event => {
    const open = document.querySelector("details.zoom[open]");
    const step = { Escape: 0, ArrowLeft: -1, ArrowRight: 1, Tab: 0 }[event.key];
    if (!open || step === undefined) return;
    event.preventDefault();
    if (event.key === "Escape") close(open);
    if (!step) return;
    const all = [...document.querySelectorAll("details.zoom")].filter(image => image.checkVisibility());
    const next = all[(all.indexOf(open) + step + all.length) % all.length];
    open.open = false;
    next.open = true;
    next.firstElementChild.focus({ preventScroll: true });
  });
  document.addEventListener("click", event => {
    if (event.target.matches("details.zoom[open]")) close(event.target);
  });

  // The table of test images: filters, and headings that sort.
  const table = document.querySelector("table.answers");
  if (!table) return;
  const form = document.querySelector("form.filters");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const text = (row, column) => row.cells[column].textContent;
  const words = rows.map(row => row.textContent.toLowerCase());
  const show = () => {
    const { words: sought, result, decision, label } = form.elements;
    const wanted = sought.value.toLowerCase().split(/\s+/);
    let shown = 0;
    rows.forEach((row, place) => {
      row.hidden = !(
        wanted.every(word => words[place].includes(word)) &&
        text(row, 0).endsWith(result.value) &&
        (!decision || text(row, 4).endsWith(decision.value)) &&
        (!label.value || text(row, 1) === label.value || text(row, 2) === label.value)
      );
      shown += !row.hidden;
    });
    form.elements.shown.value = `${shown} of ${rows.length} rows`;
  };
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", event => event.preventDefault());
  show();
})();
