"use strict";
// Click on a heading: sort the bodies of the table, each a run's line with its command.
function cellValue(cell) {
  const text = cell ? cell.textContent.trim() : "";
  const number = parseFloat(text.replace(/,/g, ""));
  return text === "" || text === "-" ? null : Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.dataset.sort = "";
    heading.addEventListener("click", () => {
      const sign = heading.dataset.sort === "down" ? 1 : -1;
      headings.forEach((other) => { other.dataset.sort = ""; });
      heading.dataset.sort = sign === 1 ? "up" : "down";
      const bodies = [...table.tBodies].map((body) => [cellValue(body.rows[0].cells[column]), body]);
      // empty cells stay at the end
      bodies.sort(([a], [b]) => (a === null || b === null ? compare(a, b) : sign * compare(a, b)));
      bodies.forEach(([, body]) => table.append(body));
    });
  });
}
// Print all details unfolded.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
