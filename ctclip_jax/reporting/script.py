"""What moves on the page: tables that sort, the map of latents. All else is there without it."""

SCRIPT = r"""
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
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((one, two) => {
      const a = key(one, column), b = key(two, column);
      if (a === null || b === null) return (a === null) - (b === null);  // missing ones last
      return sign * compare(a, b);
    });
    body.append(...rows);
    for (const each of heads) each.setAttribute("aria-sort", each === head ? order : "none");
  };
  for (const head of heads) head.querySelector("button").onclick = () => sort(head);
}

const canvas = document.getElementById("map");
if (canvas) {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const choice = document.getElementById("map-label");
  const tip = document.querySelector(".tip");
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name);
  const STATES = {"0": "negative", "1": "positive", "?": "unknown"};
  const MARGIN = 10, REACH = 8;
  let size = 0, pointed = -1;
  const place = (i) => data.places[i].map(
    (value, axis) => MARGIN + (axis ? 1 - value : value) * (size - 2 * MARGIN));
  const state = (i) => (data.labels[choice.value] || "")[i] || "?";
  const dot = (context, i, radius) => {
    context.beginPath();
    context.arc(...place(i), radius, 0, 2 * Math.PI);
  };
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    size = canvas.clientWidth;
    canvas.width = canvas.height = size * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const radius = data.places.length > 1500 ? 2.2 : data.places.length > 200 ? 3 : 4.5;
    for (const which of "?01") {
      context.fillStyle = context.strokeStyle = color("--" + STATES[which]);
      context.globalAlpha = which === "1" ? 0.85 : 0.75;
      for (let i = 0; i < data.places.length; i++) {
        if (state(i) !== which) continue;
        dot(context, i, radius);
        which === "?" ? context.stroke() : context.fill();
      }
    }
    if (pointed < 0) return;
    context.globalAlpha = 1;
    context.strokeStyle = color("--ink");
    context.lineWidth = 1.5;
    dot(context, pointed, radius + 2.5);
    context.stroke();
  };
  const point = (event) => {
    let best = REACH, found = -1;
    for (let i = 0; event && i < data.places.length; i++) {
      const [x, y] = place(i);
      const distance = Math.hypot(x - event.offsetX, y - event.offsetY);
      if (distance < best) [best, found] = [distance, i];
    }
    tip.hidden = found < 0;
    if (found >= 0) {
      const [x, y] = place(found);
      tip.textContent = `${data.names[found]}: ${STATES[state(found)]}`;
      tip.style.top = `${y + 12}px`;
      tip.style.left = `${Math.max(0, Math.min(x, size - tip.offsetWidth))}px`;
    }
    if (found !== pointed) { pointed = found; draw(); }
  };
  canvas.onpointermove = point;
  canvas.onpointerleave = () => point(null);
  choice.onchange = draw;
  window.addEventListener("resize", draw);
  draw();
}
"""
