// Uploads a scan, then shows its findings, slices and similar cases.

import { Viewer } from "./viewer.js";

const POLL_MS = 250;
const STATES = {
  compiling: "Waiting for the model, which is being compiled", waiting: "Waiting for its turn",
  reading: "Reading the scan", encoding: "Running the model",
};
const $ = (id) => document.getElementById(id);
const about = await request("/api/about");
const viewer = new Viewer(showVoxel);
let scan = null, selected = null; // the scan on the page, and the name of the finding with a map
let jobCount = 0, mapCount = 0, searchCount = 0; // answers to earlier requests come too late

$("deletes-uploads").hidden = about.keep_uploads;
$("ask").hidden = !about.can_ask;
$("note").textContent =
  (about.label_informed ? "Trained with labels, not zero-shot. " : "Zero-shot: which of two sentences fits the scan better. ") +
  (about.calibrated_on ? `Calibrated on ${about.calibrated_on}. ` : "Not calibrated: a score is no probability. ") +
  `Maps: ${about.method}.`;
$("cases").hidden = !about.num_cases;
if (about.is_compiling) runJob("The model is being compiled; a scan can be opened already", waitForModel);
if (location.hash) restore();

async function request(path, options = {}) {
  const response = await fetch(path, options);
  const content = await response.json().catch(() => ({})); // 204, or an answer that is not of the API
  if (!response.ok) throw new Error(content.error || `${path}: ${response.statusText}`);
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
$("dismiss").addEventListener("click", () => setStatus(""));
addEventListener("popstate", restore);

// The scan on the page stays until another one can take its place. `work` gets a function that
// says whether its job is still the latest. After a failure the address names the scan on the page.
async function runJob(text, work) {
  const number = ++jobCount, isLatest = () => number === jobCount;
  setStatus(text, "busy");
  try {
    await work(isLatest);
    if (isLatest()) setStatus("");
  } catch (error) {
    if (!isLatest()) return;
    setAddress(scan?.id);
    setStatus(error.message, "failed");
  }
}

function upload(file) {
  return runJob(`Sending ${file.name}`, async (isLatest) => {
    if (file.size > about.max_upload_bytes) {
      throw new Error(`${file.name}: more than ${about.max_upload_bytes / 2 ** 20} MiB; see --max_upload_mb`);
    }
    const { id } = await send(file, isLatest), before = scan?.id;
    if (isLatest()) {
      setAddress(id); // a refresh goes on waiting for it
      await open(id, isLatest);
    }
    if (!isLatest()) return drop(id);
    setAddress(before); // one step back
    history.pushState(null, "", `#${id}`);
  });
}

function setAddress(id) {
  history.replaceState(null, "", id ? `#${id}` : location.pathname);
}

// The scan that the address names: after a refresh, in another tab, one step back.
function restore() {
  const id = location.hash.slice(1);
  if (scan?.id === id) return;
  if (!id) return leave();
  runJob("Opening the scan", (isLatest) => open(id, isLatest));
}

function leave() {
  jobCount++;
  scan = null;
  setMap(null);
  setStatus("");
  $("empty").hidden = false;
  $("exam").hidden = true;
  showHits("Cases", []);
}

async function waitForModel(isLatest) {
  while (isLatest() && (await request("/api/about")).is_compiling) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
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
    upload.upload.onprogress = (e) => {
      if (!isLatest()) return;
      $("progress").hidden = false;
      $("progress").value = e.loaded / e.total;
    };
    upload.onload = () => (upload.status === 201 ? resolve(upload.response)
      : reject(new Error(upload.response?.error || "The upload was refused")));
    upload.onerror = () => reject(new Error("The upload failed"));
    upload.send(file);
  });
}

// Waits for an analysis and shows it.
async function open(id, isLatest) {
  for (;;) {
    const analysis = await request(`/api/scans/${encodeURIComponent(id)}`);
    if (!isLatest()) return;
    if (analysis.state === "done") return show(analysis, isLatest);
    if (analysis.state === "failed") {
      drop(id); // else it would take the place of a scan in memory
      throw new Error(analysis.error);
    }
    if (!STATES[analysis.state]) throw new Error(`scan: unknown state; got ${analysis.state}`);
    setStatus(STATES[analysis.state], "busy");
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// kind: "busy", "failed", or none for a text that needs no attention.
function setStatus(text, kind = "") {
  $("status").textContent = text;
  $("job").hidden = !text;
  $("job").className = kind;
  $("job").ariaBusy = kind === "busy";
  $("progress").hidden = true;
}

// A scan ------------------------------------------------------------------------------------------

async function show(analysis, isLatest) {
  setStatus("Loading the slices", "busy");
  const [volume, hits] = await Promise.all([
    loadVolume(analysis.id),
    about.num_cases ? loadHits(request(`/api/scans/${analysis.id}/similar`)) : [],
  ]);
  if (!isLatest()) return;
  scan = analysis;
  $("empty").hidden = true;
  $("exam").hidden = false;
  $("name").textContent = scan.name;
  $("message").textContent = "";
  viewer.show(volume, scan);
  setMap(null);
  listFindings();
  const notes = [...about.notes, ...scan.provenance.notes.split("; ").filter(Boolean)];
  if (scan.step > 1) notes.push(`1 of every ${scan.step} slices is shown (the scan is too large for the page)`);
  $("warnings").replaceChildren(...notes.map((note) => element("li", note)));
  $("provenance").replaceChildren(...Object.entries(scan.provenance).flatMap(([name, value]) =>
    [element("dt", name.replaceAll("_", " ")), element("dd", String(value))]));
  showHits("Similar cases", hits);
}

async function loadVolume(id) {
  const response = await fetch(`/api/scans/${id}/volume`);
  if (!response.ok) throw new Error((await response.json()).error);
  return new Int16Array(await response.arrayBuffer());
}

function listFindings() {
  const isCalibrated = ({ calibrated }) => calibrated !== null; // the others' values are no probabilities
  const sorted = [...scan.findings].sort((a, b) =>
    b.is_question - a.is_question || isCalibrated(b) - isCalibrated(a) || b.shown - a.shown);
  $("findings").replaceChildren(...sorted.map(row));
  $("reading").textContent = reading();
}

// What the numbers are, above them.
function reading() {
  const some = (has) => scan.findings.some(has);
  const text = [
    some(({ calibrated }) => calibrated !== null) && "calibrated probability",
    some(({ calibrated, rank }) => calibrated === null && rank !== null) && `compared with ${about.num_reference} reference volumes`,
    some(({ calibrated, rank }) => calibrated === null && rank === null) && "score, which is no probability",
    some(({ tick }) => tick !== null) && "mark: threshold",
  ].filter(Boolean).join("; ");
  return text[0].toUpperCase() + text.slice(1);
}

function row(finding) {
  const button = element("button"), track = element("span", "", "track"), bar = element("i");
  bar.style.width = `${100 * finding.shown}%`;
  track.append(bar);
  if (finding.tick !== null) {
    const tick = element("b");
    tick.style.left = `${100 * finding.tick}%`;
    track.append(tick);
  }
  button.append(element("span", finding.name, finding.is_question ? "question" : ""), element("span", value(finding), "value"), track);
  const score = `score ${finding.probability.toFixed(2)}` + (finding.usual === null ? "" : `, usually ${finding.usual.toFixed(2)}`);
  if (finding.is_question) button.append(element("small", score));
  button.title = score;
  button.dataset.finding = finding.name;
  button.ariaPressed = finding.name === selected;
  button.addEventListener("click", () => (finding.name === selected ? setMap(null) : loadMap(finding)));
  const item = element("li");
  item.append(button);
  return item;
}

// No percent sign without a calibration or a rank: a score is no probability.
function value({ probability, calibrated, rank }) {
  if (calibrated !== null) return `${(100 * calibrated).toFixed(calibrated > 0.0995 ? 0 : 1)} %`;
  if (rank === null) return probability.toFixed(2);
  const total = about.num_reference, count = Math.round(rank * total); // 100 * 0.29 is less than 29
  return `higher than ${Math.floor(100 * count / total)} % of ${total}`;
}

function markRows(attribute, name) {
  for (const button of $("findings").querySelectorAll("button")) button[attribute] = button.dataset.finding === name;
}

async function loadMap(finding) {
  const number = ++mapCount, isLatest = () => number === mapCount;
  markRows("ariaBusy", finding.name);
  try {
    const map = await request(`/api/scans/${scan.id}/map?finding=${encodeURIComponent(finding.name)}`);
    if (isLatest()) setMap(finding, map);
  } catch (error) {
    if (!isLatest()) return;
    markRows("ariaBusy", null);
    $("message").textContent = error.message;
  }
}

// Without a finding, no map.
function setMap(finding, map = null) {
  mapCount++;
  selected = finding?.name ?? null;
  markRows("ariaPressed", selected);
  markRows("ariaBusy", null);
  viewer.setMap(map);
  $("scale").hidden = !map;
  if (!map) return;
  viewer.goTo(finding.peak);
  $("scale-min").textContent = (-viewer.limit).toPrecision(2);
  $("scale-max").textContent = `+${viewer.limit.toPrecision(2)}`;
  $("scale-unit").textContent = `contribution of a patch to the logit; sum ${signed(map.sum.toFixed(2))}` +
    (Math.abs(map.padding) >= 0.005 ? `, ${signed(map.padding.toFixed(2))} of it from outside the scan` : "");
}

const signed = (digits) => (digits.startsWith("-") ? digits : `+${digits}`);

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const current = scan, text = $("question").value;
  $("message").textContent = "";
  whileBusy($("ask"), async () => {
    const answer = await post(`/api/scans/${current.id}/findings`, { finding: text });
    if (scan !== current) return;
    let finding = current.findings.find(({ name }) => name === answer.name);
    if (!finding) {
      current.findings.push(finding = answer);
      listFindings();
    }
    $("question").value = "";
    await loadMap(finding);
  }).catch((error) => {
    if (scan === current) $("message").textContent = error.message;
  });
});

// A form shows that it works, and does not send the same again.
async function whileBusy(form, work) {
  const button = form.querySelector("button");
  form.ariaBusy = button.disabled = true;
  try {
    await work();
  } finally {
    form.ariaBusy = button.disabled = false;
  }
}

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
  let text = voxel ? `${voxel.hu} HU` : "";
  if (voxel?.contribution === null) text += "   outside the model's grid";
  else if (voxel?.contribution !== undefined) text += `   this patch adds ${signed(voxel.contribution.toPrecision(2))}`;
  $("hover").textContent = text;
}

// Cases -------------------------------------------------------------------------------------------

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("query").value.trim(), number = ++searchCount;
  if (text) whileBusy($("search"), async () => {
    const hits = await loadHits(post("/api/search", { text }));
    if (number === searchCount) showHits(`Cases for “${text}”`, hits);
  });
});

async function loadHits(answer) {
  try {
    return (await answer).map(card);
  } catch (error) {
    return [element("li", error.message, "failed")];
  }
}

function showHits(title, items) {
  searchCount++;
  $("cases-title").textContent = title;
  $("hits").replaceChildren(...items);
}

function card({ row, similarity, entry, num_volumes }) {
  const item = element("li"), head = element("h3", entry.name), tags = element("div", "", "tags");
  const thumbnail = element("img");
  thumbnail.src = `/api/thumbnails/${row}`;
  thumbnail.alt = `Slices of ${entry.name}`;
  head.append(element("span", similarity.toFixed(3)));
  const present = Object.keys(entry.labels).filter((name) => entry.labels[name]);
  if (num_volumes > 1) tags.append(element("span", `${num_volumes} reconstructions`));
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
