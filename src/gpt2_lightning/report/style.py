"""How a page looks and what it does by itself: the reader's own light or dark, figures drawn, tables sorted by a click.

One number: 1 event handler, for the heads of all tables. Figures stay light: Optuna's colours are made for that.
Choice not taken: a framework.
"""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { --ink: #1f2328; --quiet: #59636e; --paper: #ffffff; --line: #d1d9e0; --tint: #f6f8fa; --link: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --quiet: #9198a1; --paper: #0d1117; --line: #3d444d; --tint: #161b22; --link: #4493f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem; }
p { max-width: 60rem; overflow-wrap: anywhere; }
.lead { margin: .3rem 0 1rem; font-size: 1.05rem; }
nav { padding: .5rem 0; border: solid var(--line); border-width: 1px 0; font-size: .875rem; line-height: 1.9; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
.wide { overflow: auto; max-height: 36rem; width: fit-content; max-width: 100%; margin: 1rem 0;
  border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; min-width: 3.5rem; max-width: 36rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
tbody tr:last-child td { border-bottom: 0; }
td:first-child, th { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
th { position: sticky; top: 0; background: var(--tint); cursor: pointer; font-weight: 600; }
th[aria-sort=ascending]::after { content: " \\25b2"; }
th[aria-sort=descending]::after { content: " \\25bc"; }
.number { text-align: right; white-space: nowrap; }
pre { margin: 1rem 0; padding: .8rem 1rem; max-height: 30rem; overflow: auto; background: var(--tint);
  border: 1px solid var(--line); border-radius: 6px; font: .8125rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; }
.plot { width: 100%; height: 26rem; background: #fff; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
figcaption { padding-top: .4rem; color: var(--quiet); font-size: .9rem; }
@media print { .wide, pre { max-height: none; } th { position: static; } }
"""

SCRIPT = """
"use strict";
for (const plot of document.querySelectorAll(".plot")) {
  const spec = JSON.parse(plot.firstChild.textContent);
  plot.textContent = "";
  if (spec.layout.height) { plot.style.height = spec.layout.height + "px"; }
  Plotly.newPlot(plot, spec.data, spec.layout, { responsive: true, displaylogo: false, showSendToCloud: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d"] });
}
const value = (row, i) => { const cell = row.cells[i]; return "value" in cell.dataset ? Number(cell.dataset.value) : null; };
const order = (a, b, i) => { const x = value(a, i), y = value(b, i);
  if (x !== null && y !== null) { return x - y; }
  if (x !== null || y !== null) { return x !== null ? -1 : 1; }
  return a.cells[i].textContent.localeCompare(b.cells[i].textContent, "en", { numeric: true }); };
document.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (!head) { return; }
  const up = head.getAttribute("aria-sort") !== "ascending", i = head.cellIndex, body = head.closest("table").tBodies[0];
  for (const other of head.parentNode.cells) { other.removeAttribute("aria-sort"); }
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => up ? order(a, b, i) : order(b, a, i)));
});
"""
