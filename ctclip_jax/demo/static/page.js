// The page: a scan goes up, its findings, slices and similar cases come back.

import { Viewer } from "./viewer.js";

const POLL_MS = 250;
const STATES = { waiting: "Waiting for its turn", reading: "Reading the scan", encoding: "Reading it with the model" };
const $ = (id) => document.getElementById(id);
const about = await ask("/api/about");
const viewer = new Viewer(hovered);
let scan = null, chosen = null;
let opened = 0, asked = 0; // what comes late, for an earlier scan or question, is not shown

$("forgets").hidden = about.keeps_uploads;
$("ask").hidden = !about.can_ask;
$("note").textContent =
  (about.label_informed ? "Trained with labels, not zero-shot. " : "Zero-shot: which of two sentences the scan is nearer to. ") +
  (about.calibrated_on ? `In brackets: what that is worth, measured on ${about.calibrated_on}. ` : "These order scans; they are no frequencies. ") +
  `Maps: ${about.method}.`;
$("cases").hidden = !about.cases;

async function ask(path, options = {}) {
  const response = await fetch(path, options);
  const content = response.status === 204 ? null : await response.json();
  if (!response.ok) throw new Error(content.error || response.statusText);
  return content;
}

const say = (path, words) => ask(path, { method: "POST", body: JSON.stringify(words) });

// Upload ------------------------------------------------------------------------------------------

for (const event of ["dragenter", "dragover"]) addEventListener(event, (e) => {
  e.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (e) => { if (!e.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (e) => {
  e.preventDefault();
  document.body.classList.remove("over");
  if (e.dataTransfer.files.length) open(e.dataTransfer.files[0]);
});
$("file").addEventListener("change", (e) => { if (e.target.files.length) open(e.target.files[0]); e.target.value = ""; });

async function open(file) {
  $("empty").hidden = false;
  $("study").hidden = true;
  $("progress").hidden = false;
  status(`Sending ${file.name}`);
  const most = about.most_bytes / 2 ** 20;
  const mine = ++opened;
  asked++;
  $("cases-title").textContent = "Cases";
  $("hits").replaceChildren();
  if (scan) forget(scan.id);
  scan = chosen = null;
  try {
    if (file.size > about.most_bytes) throw new Error(`${file.name}: more than ${most} MiB; see --max_upload_mb`);
    const { id } = await send(file, mine);
    if (mine === opened) await ready(id, mine);
    if (mine !== opened) forget(id);
  } catch (error) {
    if (mine === opened) status(error.message, true);
  } finally {
    if (mine === opened) $("progress").hidden = true;
  }
}

function forget(id) {
  ask(`/api/scans/${id}`, { method: "DELETE" }).catch(() => {});
}

function send(file, mine) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/scans?name=${encodeURIComponent(file.name)}`);
    request.responseType = "json";
    request.upload.onprogress = (e) => { if (mine === opened) $("progress").value = e.loaded / e.total; };
    request.onload = () => (request.status === 201 ? resolve(request.response)
      : reject(new Error(request.response?.error || "The scan was not taken")));
    request.onerror = () => reject(new Error("The scan could not be sent"));
    request.send(file);
  });
}

async function ready(id, mine) {
  $("progress").removeAttribute("value");
  for (;;) {
    const found = await ask(`/api/scans/${id}`);
    if (mine !== opened) return;
    if (found.state === "failed") throw new Error(found.error);
    if (found.state === "done") return show(found, mine);
    status(STATES[found.state]);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function status(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

// A scan ------------------------------------------------------------------------------------------

async function show(found, mine) {
  status("Fetching its slices");
  const response = await fetch(`/api/scans/${found.id}/volume`);
  if (!response.ok) throw new Error((await response.json()).error);
  const volume = new Int16Array(await response.arrayBuffer());
  if (mine !== opened) return;
  scan = found;
  status("");
  $("empty").hidden = true;
  $("study").hidden = false;
  $("name").textContent = found.name;
  $("line").textContent = "";
  $("scale").hidden = true;
  viewer.show(volume, found.shape, found.spacing);
  list();
  $("provenance").replaceChildren(...Object.entries(found.provenance).flatMap(([name, value]) =>
    [element("dt", name.replaceAll("_", " ")), element("dd", String(value))]));
  if (about.cases) hits("Similar cases", ask(`/api/scans/${found.id}/similar`));
}

function list() {
  const best = [...scan.findings].sort((a, b) => Boolean(b.asked) - Boolean(a.asked) || b.probability - a.probability);
  $("findings").replaceChildren(...best.map(row));
}

function row(finding) {
  const button = element("button"), value = element("span", percent(finding), "value");
  const track = element("span", "", "track"), bar = element("i");
  bar.style.width = `${100 * finding.probability}%`;
  track.append(bar);
  button.append(element("span", finding.name, finding.asked ? "asked" : ""), value, track);
  button.dataset.finding = finding.name;
  button.ariaPressed = finding.name === chosen;
  button.addEventListener("click", () => choose(finding));
  const item = element("li");
  item.append(button);
  return item;
}

function percent({ probability, calibrated }) {
  const shown = (value) => `${(100 * value).toFixed(value > 0.0995 ? 0 : 1)} %`;
  return calibrated === null ? shown(probability) : `${shown(probability)} (${shown(calibrated)})`;
}

async function choose(finding) {
  const of = scan;
  chosen = chosen === finding.name ? null : finding.name;
  list();
  $("scale").hidden = true;
  viewer.setMap(null);
  if (!chosen) return;
  try {
    const map = await ask(`/api/scans/${of.id}/map?finding=${encodeURIComponent(finding.name)}`);
    if (scan !== of || chosen !== finding.name) return;
    viewer.setMap(map);
    viewer.goTo(finding.peak);
    $("least").textContent = (-viewer.most).toPrecision(2);
    $("most").textContent = `+${viewer.most.toPrecision(2)}`;
    $("about-map").textContent = `added to the logit by a patch; ${map.sum >= 0 ? "+" : ""}${map.sum.toFixed(2)} in all`;
    $("scale").hidden = false;
  } catch (error) {
    if (scan === of) $("line").textContent = error.message;
  }
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const of = scan;
  $("line").textContent = "";
  try {
    const finding = { ...(await say(`/api/scans/${of.id}/findings`, { finding: $("question").value })), asked: true };
    if (scan !== of) return;
    const known = of.findings.find((each) => each.name === finding.name);
    if (!known) of.findings.push(finding);
    $("question").value = "";
    chosen = null;
    choose(known || finding);
  } catch (error) {
    if (scan === of) $("line").textContent = error.message;
  }
});

for (const button of document.querySelectorAll(".presets button")) button.addEventListener("click", () => {
  for (const each of document.querySelectorAll(".presets button")) each.ariaChecked = each === button;
  viewer.window = [Number(button.dataset.low), Number(button.dataset.high)];
  viewer.draw();
});
$("opacity").addEventListener("input", (event) => {
  viewer.opacity = event.target.value / 100;
  viewer.draw();
});

function hovered(told) {
  $("hover").textContent = told === null ? "" : `${told.hu} HU` +
    (told.added === undefined ? "" : `   this patch adds ${told.added >= 0 ? "+" : ""}${told.added.toPrecision(2)}`);
}

// Cases -------------------------------------------------------------------------------------------

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("words").value.trim();
  if (words) hits(`Cases for “${words}”`, say("/api/search", { text: words }));
});

async function hits(title, answer) {
  const mine = ++asked;
  $("cases-title").textContent = title;
  let shown;
  try {
    shown = (await answer).map(card);
  } catch (error) {
    shown = [element("li", error.message, "failed")];
  }
  if (mine === asked) $("hits").replaceChildren(...shown);
}

function card(hit) {
  const item = element("li"), head = element("h3", hit.name), tags = element("div", "", "tags");
  const picture = element("img");
  picture.src = `/api/thumbnails/${hit.row}`;
  picture.alt = `Slices of ${hit.name}`;
  head.append(element("span", hit.similarity.toFixed(3)));
  tags.append(...hit.present.map((name) => element("b", name)));
  item.append(picture, head, tags, element("p", hit.impressions || hit.findings || "No report."));
  return item;
}

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}
