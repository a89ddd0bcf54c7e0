// Uploads a scan, then shows its findings, slices and similar cases.

import { Viewer } from "./viewer.js";

const POLL_MS = 250;
const STATES = { waiting: "Waiting for its turn", reading: "Reading the scan", encoding: "Running the model" };
const $ = (id) => document.getElementById(id);
const about = await request("/api/about");
const viewer = new Viewer(showVoxel);
let scan = null, selected = null; // the scan on the page, and the name of the finding with a map
let uploadCount = 0, searchCount = 0; // answers to earlier uploads and searches come too late

$("deletes-uploads").hidden = about.keep_uploads;
$("ask").hidden = !about.can_ask;
$("note").textContent =
  (about.label_informed ? "Trained with labels, not zero-shot. " : "Zero-shot: which of two sentences fits the scan better. ") +
  (about.calibrated_on ? `In brackets: calibrated probability, fitted on ${about.calibrated_on}. ` : "Not calibrated: compare scans, do not read as frequencies. ") +
  `Maps: ${about.method}.`;
$("cases").hidden = !about.num_cases;

async function request(path, options = {}) {
  const response = await fetch(path, options);
  const content = response.status === 204 ? null : await response.json();
  if (!response.ok) throw new Error(content.error || response.statusText);
  return content;
}

const post = (path, content) => request(path, { method: "POST", body: JSON.stringify(content) });

// Upload ------------------------------------------------------------------------------------------

for (const event of ["dragenter", "dragover"]) addEventListener(event, (e) => {
  e.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (e) => { if (!e.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (e) => {
  e.preventDefault();
  document.body.classList.remove("over");
  if (e.dataTransfer.files.length) upload(e.dataTransfer.files[0]);
});
$("file").addEventListener("change", (e) => { if (e.target.files.length) upload(e.target.files[0]); e.target.value = ""; });

async function upload(file) {
  const number = ++uploadCount, isLatest = () => number === uploadCount;
  searchCount++; // results of the last scan would be shown beside this one
  $("empty").hidden = false;
  $("exam").hidden = true;
  $("progress").hidden = false;
  setStatus(`Sending ${file.name}`);
  $("cases-title").textContent = "Cases";
  $("hits").replaceChildren();
  if (scan) drop(scan.id);
  scan = selected = null;
  try {
    if (file.size > about.max_upload_bytes) {
      throw new Error(`${file.name}: more than ${about.max_upload_bytes / 2 ** 20} MiB; see --max_upload_mb`);
    }
    const { id } = await send(file, isLatest);
    if (isLatest()) await poll(id, isLatest);
    if (!isLatest()) drop(id);
  } catch (error) {
    if (isLatest()) setStatus(error.message, true);
  } finally {
    if (isLatest()) $("progress").hidden = true;
  }
}

function drop(id) {
  request(`/api/scans/${id}`, { method: "DELETE" }).catch(() => {});
}

// XMLHttpRequest, because fetch reports no progress of an upload.
function send(file, isLatest) {
  return new Promise((resolve, reject) => {
    const upload = new XMLHttpRequest();
    upload.open("POST", `/api/scans?name=${encodeURIComponent(file.name)}`);
    upload.responseType = "json";
    upload.upload.onprogress = (e) => { if (isLatest()) $("progress").value = e.loaded / e.total; };
    upload.onload = () => (upload.status === 201 ? resolve(upload.response)
      : reject(new Error(upload.response?.error || "The upload was refused")));
    upload.onerror = () => reject(new Error("The upload failed"));
    upload.send(file);
  });
}

async function poll(id, isLatest) {
  $("progress").removeAttribute("value");
  for (;;) {
    const analysis = await request(`/api/scans/${id}`);
    if (!isLatest()) return;
    if (analysis.state === "failed") throw new Error(analysis.error);
    if (analysis.state === "done") return show(analysis, isLatest);
    setStatus(STATES[analysis.state]);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function setStatus(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

// A scan ------------------------------------------------------------------------------------------

async function show(analysis, isLatest) {
  setStatus("Loading the slices");
  const response = await fetch(`/api/scans/${analysis.id}/volume`);
  if (!response.ok) throw new Error((await response.json()).error);
  const volume = new Int16Array(await response.arrayBuffer());
  if (!isLatest()) return;
  scan = analysis;
  setStatus("");
  $("empty").hidden = true;
  $("exam").hidden = false;
  $("name").textContent = scan.name;
  $("message").textContent = "";
  $("scale").hidden = true;
  viewer.show(volume, scan.shape, scan.spacing);
  listFindings();
  $("warnings").replaceChildren(...scan.provenance.notes.split("; ").filter(Boolean).map((note) => element("li", note)));
  $("provenance").replaceChildren(...Object.entries(scan.provenance).flatMap(([name, value]) =>
    [element("dt", name.replaceAll("_", " ")), element("dd", String(value))]));
  if (about.num_cases) showHits("Similar cases", request(`/api/scans/${scan.id}/similar`));
}

function listFindings() {
  const isQuestion = (finding) => Boolean(finding.isQuestion);
  const sorted = [...scan.findings].sort((a, b) => isQuestion(b) - isQuestion(a) || b.probability - a.probability);
  $("findings").replaceChildren(...sorted.map(row));
}

function row(finding) {
  const button = element("button"), value = element("span", percent(finding), "value");
  const track = element("span", "", "track"), bar = element("i");
  bar.style.width = `${100 * finding.probability}%`;
  track.append(bar);
  button.append(element("span", finding.name, finding.isQuestion ? "question" : ""), value, track);
  button.dataset.finding = finding.name;
  button.ariaPressed = finding.name === selected;
  button.addEventListener("click", () => toggleMap(finding));
  const item = element("li");
  item.append(button);
  return item;
}

function percent({ probability, calibrated }) {
  const format = (value) => `${(100 * value).toFixed(value > 0.0995 ? 0 : 1)} %`;
  return calibrated === null ? format(probability) : `${format(probability)} (${format(calibrated)})`;
}

async function toggleMap(finding) {
  const current = scan;
  selected = selected === finding.name ? null : finding.name;
  listFindings();
  $("scale").hidden = true;
  viewer.setMap(null);
  if (!selected) return;
  try {
    const map = await request(`/api/scans/${current.id}/map?finding=${encodeURIComponent(finding.name)}`);
    if (scan !== current || selected !== finding.name) return;
    viewer.setMap(map);
    viewer.goTo(finding.peak);
    $("scale-min").textContent = (-viewer.limit).toPrecision(2);
    $("scale-max").textContent = `+${viewer.limit.toPrecision(2)}`;
    $("scale-unit").textContent = `contribution of a patch to the logit; sum ${signed(map.sum.toFixed(2))}`;
    $("scale").hidden = false;
  } catch (error) {
    if (scan === current) $("message").textContent = error.message;
  }
}

const signed = (digits) => (digits.startsWith("-") ? digits : `+${digits}`);

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const current = scan;
  $("message").textContent = "";
  try {
    const answer = await post(`/api/scans/${current.id}/findings`, { finding: $("question").value });
    if (scan !== current) return;
    let finding = current.findings.find(({ name }) => name === answer.name);
    if (!finding) current.findings.push(finding = { ...answer, isQuestion: true });
    $("question").value = "";
    selected = null;
    toggleMap(finding);
  } catch (error) {
    if (scan === current) $("message").textContent = error.message;
  }
});

for (const button of document.querySelectorAll(".presets button")) button.addEventListener("click", () => {
  for (const other of document.querySelectorAll(".presets button")) other.ariaChecked = other === button;
  viewer.window = [Number(button.dataset.low), Number(button.dataset.high)];
  viewer.draw();
});
$("opacity").addEventListener("input", (event) => {
  viewer.opacity = event.target.value / 100;
  viewer.draw();
});

function showVoxel(voxel) {
  $("hover").textContent = voxel === null ? "" : `${voxel.hu} HU` +
    (voxel.contribution === undefined ? "" : `   this patch adds ${signed(voxel.contribution.toPrecision(2))}`);
}

// Cases -------------------------------------------------------------------------------------------

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("query").value.trim();
  if (text) showHits(`Cases for “${text}”`, post("/api/search", { text }));
});

async function showHits(title, answer) {
  const number = ++searchCount;
  $("cases-title").textContent = title;
  let items;
  try {
    items = (await answer).map(card);
  } catch (error) {
    items = [element("li", error.message, "failed")];
  }
  if (number === searchCount) $("hits").replaceChildren(...items);
}

function card({ row, similarity, entry }) {
  const item = element("li"), head = element("h3", entry.name), tags = element("div", "", "tags");
  const thumbnail = element("img");
  thumbnail.src = `/api/thumbnails/${row}`;
  thumbnail.alt = `Slices of ${entry.name}`;
  head.append(element("span", similarity.toFixed(3)));
  const present = Object.keys(entry.labels).filter((name) => entry.labels[name]);
  tags.append(...present.map((name) => element("b", name)));
  item.append(thumbnail, head, tags, element("p", entry.impressions || entry.findings || "No report."));
  return item;
}

// textContent, never innerHTML: names and reports may hold markup.
function element(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}
