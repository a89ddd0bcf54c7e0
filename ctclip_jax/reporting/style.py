"""The look of the pages."""

CSS = """
:root { --ink: #1d2733; --soft: #5f6d7a; --line: #e4e9ed; --accent: #0f6e84; --pale: #86bcc9;
  --paper: #fff; --ground: #f6f8f9; --tint: #eef5f7; --good: #dff1e6; --good-ink: #1c6b3f;
  --bad: #f8e7df; --bad-ink: #97431f; --positive: #cf5c1f; --negative: #a9bac5;
  --unknown: #c9c3a5; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 56px; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 0 32px 56px; }

nav { position: sticky; top: 0; z-index: 2; display: flex; gap: 22px; padding: 11px 0;
  background: var(--ground); border-bottom: 1px solid var(--line); font-size: 13.5px;
  overflow-x: auto; white-space: nowrap; }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }

h1 { font-size: 30px; font-weight: 650; letter-spacing: -.015em; line-height: 1.2;
  margin: 36px 0 4px; }
h2 { font-size: 21px; font-weight: 650; letter-spacing: -.01em; margin: 56px 0 2px; }
h3 { font-size: 15px; font-weight: 650; margin: 0 0 10px; }
h4 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 92ch; text-wrap: pretty; }
small { font-size: 12px; font-weight: 400; }
.soft, small, footer { color: var(--soft); }
.none { color: var(--soft); cursor: help; }
footer { margin-top: 56px; padding-top: 14px; border-top: 1px solid var(--line);
  font-size: 13px; }

.counts { font-size: 17px; margin-bottom: 18px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr));
  gap: 4px 28px; margin: 0 0 20px; font-size: 13.5px; }
dl div { display: flex; gap: 10px; }
dt { flex: 0 0 84px; color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.notes { margin: 0 0 20px; padding: 8px 14px; list-style: none; font-size: 13.5px;
  background: #fbf6e6; border-radius: 6px; color: #6b5617; overflow-wrap: anywhere; }

.panel, .card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.panel { padding: 18px 22px; margin-bottom: 16px; }
.wide { overflow-x: auto; }
.overview.split { display: grid; grid-template-columns: 1fr 448px; gap: 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 16px; }
.card { padding: 16px 20px; display: flex; flex-direction: column; }
.card span:first-child { font-size: 14px; }
.card p { margin: auto 0; padding: 4px 0; }
.card b { font-size: 34px; font-weight: 650; letter-spacing: -.02em; color: var(--accent);
  line-height: 1.3; }
.card .ci { display: block; margin: 0; font-size: 13.5px; color: var(--ink); }
.published { margin: 0; }
.published p { font-size: 12.5px; margin: 10px 0 0; }

table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td, .card { font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-weight: 400; }
th:first-child, td:first-child, tbody th, tfoot th { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-size: 12.5px; color: var(--soft); vertical-align: bottom; }
tbody:last-child tr:last-child > *, tfoot tr:last-child > * { border-bottom: 0; }
.ci { color: var(--soft); font-size: 12px; }
.drawn { padding-left: 6px; }
.scale span { display: flex; justify-content: space-between; width: 88px; margin-left: auto; }
.scale i { font-style: normal; font-size: 11px; }

.labels th, .labels td { padding-left: 5px; padding-right: 5px; }
.labels thead th { white-space: normal; }
.labels th:first-child { padding-left: 0; }
.labels td:last-child, .labels th:last-child { padding-right: 0; }
.labels .range, .labels .scale span { width: 72px; }
.sortable tbody tr:hover > * { background: var(--tint); }
.sortable button { all: unset; cursor: pointer; color: var(--soft); }
.sortable button:hover, th[aria-sort$="ending"] button { color: var(--accent); }
.sortable button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.sortable button::before { font-size: 9px; padding-right: 3px; vertical-align: 1px; }
[aria-sort="descending"] button::before { content: "▼"; }
[aria-sort="ascending"] button::before { content: "▲"; }
.groups td { border: 0; }
.groups th, .groups th:last-child { padding: 0; text-align: center; font-size: 12px;
  border-right: 12px solid #fff; }
.groups th:last-child { border-right: 0; }
tfoot th, tfoot td { font-weight: 600; }
tfoot .ci { font-weight: 400; }
tfoot tr:first-child > * { border-top: 2px solid var(--line); }
tfoot th small { display: block; white-space: normal; }

.range { position: relative; display: inline-block; width: 88px; height: 12px;
  vertical-align: -2px;
  background: linear-gradient(var(--line), var(--line)) center / 100% 2px no-repeat; }
.range i { position: absolute; top: 3px; height: 6px; border-radius: 2px; background: var(--pale);
  min-width: 2px; }
.range b { position: absolute; top: 0; width: 2px; height: 100%; margin-left: -1px;
  background: var(--accent); }

.beside th, .beside td { padding: 4px 5px; font-size: 13.5px; }
.beside th:first-child { padding-left: 0; }
.beside td:last-child, .beside th:last-child { padding-right: 0; }
.beside small { margin-left: 5px; font-size: 11px; }
.beside + .beside { margin-top: 14px; }
.own > * { font-weight: 650; color: var(--accent); }
.strata th[scope="rowgroup"] { vertical-align: top; font-weight: 650; width: 150px; }
.strata tbody:last-child th[scope="rowgroup"] { border-bottom: 0; }
.strata tbody th[scope="row"] { padding-left: 8px; }
.searches td b { font-weight: 600; }
.searches td .ci, .searches td .chance, .searches th small { display: block; margin: 0;
  line-height: 1.35; }
.searches td, .searches tbody th { vertical-align: top; }
.searches .chance { opacity: .8; }

.tabs > input { position: absolute; opacity: 0; }
.tabs > label { display: inline-block; padding: 5px 14px; margin: 0 4px 14px 0; font-size: 14px;
  border: 1px solid var(--line); border-radius: 16px; color: var(--soft); cursor: pointer; }
.tabs > input:checked + label { background: var(--accent); border-color: var(--accent);
  color: #fff; }
.tabs > input:focus-visible + label { outline: 2px solid var(--accent); outline-offset: 2px; }
.grid { display: none; }
.grid h3 { display: none; }
#show-roc:checked ~ .roc, #show-pr:checked ~ .pr,
#show-calibration:checked ~ .calibration { display: block; }
.plots { display: grid; grid-template-columns: repeat(6, 1fr); gap: 18px 20px; }
.plots.searches { grid-template-columns: repeat(5, 1fr); }
figure { margin: 0; display: flex; flex-direction: column; }
figcaption { display: flex; align-items: flex-end;
  min-height: 34px; margin-bottom: 5px; padding-left: 13.3%;
  font-size: 12.5px; line-height: 1.3; }
svg { display: block; width: 100%; }
svg text { font-size: 7.5px; fill: var(--soft); }
.searches svg text { font-size: 6.5px; }
svg .value { font-size: 9px; font-weight: 600; fill: var(--accent);
  paint-order: stroke; stroke: #fff; stroke-width: 2.5px; stroke-linejoin: round; }
.frame { fill: none; stroke: var(--line); }
.curve { fill: none; stroke: var(--accent); stroke-width: 1.3; stroke-linejoin: round; }
.area { fill: var(--accent); opacity: .09; }
.guide { fill: none; stroke: #9fadb8; stroke-width: .7; stroke-dasharray: 2.5 2; }
.bar { stroke: var(--accent); stroke-width: 3.4; stroke-linecap: round; opacity: .28; }
svg circle { fill: var(--ink); }
.calibration circle, .searches circle { fill: var(--accent); }
.after { padding-left: 13.3%; }
.blank { flex: 1; display: grid; place-items: center; margin: 0 3.3% 10% 13.3%; padding: 12px;
  min-height: 110px; text-align: center; font-size: 12.5px; color: var(--soft);
  border: 1px dashed var(--line); }

.map { display: grid; grid-template-columns: 300px minmax(0, 690px); gap: 32px;
  justify-content: space-between; }
.canvas { position: relative; }
canvas { display: block; width: 100%; aspect-ratio: 1; }
.tip { position: absolute; padding: 2px 9px; border-radius: 5px; background: var(--ink);
  color: #fff; font-size: 12.5px; pointer-events: none; white-space: nowrap; }
.map label { display: block; font-size: 13px; color: var(--soft); margin-bottom: 4px; }
select { font: inherit; font-size: 14px; width: 100%; max-width: 300px; padding: 6px 8px;
  border: 1px solid #cbd4db; border-radius: 6px; background: #fff; color: inherit; }
.legend { list-style: none; padding: 0; margin: 16px 0; font-size: 14px; }
.legend li::before { content: ""; display: inline-block; width: 10px; height: 10px;
  margin-right: 9px; border-radius: 50%; background: var(--positive); }
.legend .negative::before { background: var(--negative); }
.legend .unknown::before { background: none; border: 1.5px solid var(--unknown); }

.cases { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; }
details { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
details[open] { grid-column: 1 / -1; padding-bottom: 18px; }
summary { padding: 10px 16px; cursor: pointer; }
summary span { font-weight: 600; font-size: 14px; }
summary small { display: block; padding-left: 16px; }
.trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 22px; }
details .trio { padding: 8px 18px 0; }
article h4 { display: flex; align-items: center; gap: 8px; }
article img { display: block; width: 100%; aspect-ratio: 3; object-fit: contain;
  border-radius: 5px; margin-bottom: 8px; background: #000; }
.name { font-size: 13px; font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere; }
.score .range { margin-right: 10px; }
.score { font-size: 13px; margin-bottom: 8px; font-variant-numeric: tabular-nums; }
.chips { margin-bottom: 6px; font-size: 12.5px; color: var(--soft); }
.chip { display: inline-block; padding: 0 9px; margin: 0 4px 5px 0; border-radius: 10px;
  font-size: 12px; line-height: 20px; background: #eef1f3; color: var(--soft); }
h4 .chip { margin: 0; }
.chip.marked { background: var(--ink); color: #fff; }
.chip.good { background: var(--good); color: var(--good-ink); }
.chip.bad { background: var(--bad); color: var(--bad-ink); }
.excerpt { font-size: 13px; line-height: 1.45; color: #3d4a57; margin: 0 0 8px;
  overflow-wrap: anywhere; }
.asked { display: grid; grid-template-columns: 1fr 2fr; gap: 22px;
  padding-bottom: 12px; margin-bottom: 14px; border-bottom: 1px solid var(--line); }
.rank { font-size: 13.5px; }
.place { font-size: 13px; color: var(--ink); }

@media (max-width: 1080px) {
  .overview.split, .map, .asked { grid-template-columns: 1fr; }
  .plots, .plots.searches { grid-template-columns: repeat(3, 1fr); }
  .cases { grid-template-columns: 1fr 1fr; } }
@media (max-width: 720px) {
  main { padding: 0 16px 40px; }
  .trio, .cases { grid-template-columns: 1fr; }
  .plots, .plots.searches { grid-template-columns: 1fr 1fr; } }
@media print {
  body { background: #fff; } nav, .tabs > label { display: none; }
  .grid, .grid h3 { display: block; } figure, article { break-inside: avoid; } }
"""
