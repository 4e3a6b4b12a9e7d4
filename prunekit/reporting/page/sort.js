"use strict";
// a run is a tbody: its line and its command move together
function worth(cell) {
  const text = cell ? cell.textContent.trim() : "";
  const number = parseFloat(text.replace(/,/g, ""));
  return text === "" || text === "-" ? null : Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.dataset.sort = "";
    head.addEventListener("click", () => {
      const way = head.dataset.sort === "down" ? 1 : -1;
      heads.forEach((other) => { other.dataset.sort = ""; });
      head.dataset.sort = way === 1 ? "up" : "down";
      const bodies = [...table.tBodies].map((body) => [worth(body.rows[0].cells[column]), body]);
      bodies.sort(([a], [b]) => (a === null || b === null ? compare(a, b) : way * compare(a, b)));
      bodies.forEach(([, body]) => table.append(body));
    });
  });
}
// on paper nothing is folded
window.addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
});
