// Sortable tables, the map of latents, printing. Everything else on the page works without this script.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th[data-column]")];
  const key = (row, column) => {
    const value = row.cells[column].dataset.value;
    if (value === undefined) return row.cells[column].textContent;
    return value === "" ? null : Number(value);
  };
  const compare = (a, b) => typeof a === "string" ? a.localeCompare(b) : a - b;
  const sort = (head) => {
    const column = Number(head.dataset.column);
    const body = table.tBodies[0], rows = [...body.rows];
    const first = typeof key(rows[0], column) === "string" ? "ascending" : "descending";
    const reverse = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? reverse : first;
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((one, two) => {
      const a = key(one, column), b = key(two, column);
      if (a === null || b === null) return (a === null) - (b === null);  // missing values last
      return sign * compare(a, b);
    });
    body.append(...rows);
    for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
  };
  for (const head of heads) head.querySelector("button").onclick = () => sort(head);
}

const canvas = document.getElementById("map");
if (canvas) {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const select = document.getElementById("map-label");
  const tip = document.querySelector(".tip");
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name);
  const STATES = {"0": "negative", "1": "positive", "?": "unknown"};
  const MARGIN = 10, REACH = 8;  // pixels: around the map; between pointer and point
  let size = 0, hovered = -1;
  const position = (i) => data.points[i].map(
    (value, axis) => MARGIN + (axis ? 1 - value : value) * (size - 2 * MARGIN));
  const state = (i) => (data.labels[select.value] || "")[i] || "?";
  const dot = (context, i, radius) => {
    context.beginPath();
    context.arc(...position(i), radius, 0, 2 * Math.PI);
  };
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    size = canvas.clientWidth;
    canvas.width = canvas.height = size * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const radius = data.points.length > 1500 ? 2.2 : data.points.length > 200 ? 3 : 4.5;
    for (const layer of "?01") {  // positive points last, on top of the others
      context.fillStyle = context.strokeStyle = color("--" + STATES[layer]);
      context.globalAlpha = layer === "1" ? 0.85 : 0.75;
      for (let i = 0; i < data.points.length; i++) {
        if (state(i) !== layer) continue;
        dot(context, i, radius);
        layer === "?" ? context.stroke() : context.fill();
      }
    }
    if (hovered < 0) return;
    context.globalAlpha = 1;
    context.strokeStyle = color("--ink");
    context.lineWidth = 1.5;
    dot(context, hovered, radius + 2.5);
    context.stroke();
  };
  const hover = (event) => {
    let closest = REACH, nearest = -1;
    for (let i = 0; event && i < data.points.length; i++) {
      const [x, y] = position(i);
      const distance = Math.hypot(x - event.offsetX, y - event.offsetY);
      if (distance < closest) [closest, nearest] = [distance, i];
    }
    tip.hidden = nearest < 0;
    if (nearest >= 0) {
      const [x, y] = position(nearest);
      tip.textContent = `${data.names[nearest]}: ${STATES[state(nearest)]}`;
      tip.style.top = `${y + 12}px`;
      tip.style.left = `${Math.max(0, Math.min(x, size - tip.offsetWidth))}px`;
    }
    if (nearest !== hovered) { hovered = nearest; draw(); }
  };
  canvas.onpointermove = canvas.onpointerdown = hover;
  canvas.onpointerleave = () => hover(null);
  select.onchange = draw;
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}

// Paper cannot open a case.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll(".cases details:not([open])")) {
    details.open = true;
    details.dataset.printing = "";
  }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("[data-printing]")) {
    details.open = false;
    delete details.dataset.printing;
  }
});
