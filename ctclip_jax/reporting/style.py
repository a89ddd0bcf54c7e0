"""The look of the report page."""

CSS = """
:root { --ink: #1d2733; --soft: #5c6b7a; --line: #e3e8ec; --accent: #0f6e84; --paper: #fff;
  --tint: #eef5f7; --good: #dff1e6; --good-ink: #1c6b3f; --bad: #f4e9e4; --bad-ink: #8d4a2b; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f8f9; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 28px; font-weight: 650; letter-spacing: -.01em; margin: 0; }
h2 { font-size: 19px; font-weight: 650; margin: 48px 0 4px; }
h3 { font-size: 15px; font-weight: 650; margin: 0 0 10px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 76ch; }
.soft, caption, footer { color: var(--soft); }
.facts { color: var(--soft); margin: 8px 0 24px; max-width: none; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.card, .panel { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
.card { padding: 14px 16px; }
.card b { display: block; font-size: 26px; font-weight: 650; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.card span { display: block; font-size: 13px; }
.card small { color: var(--soft); }
.panel { padding: 16px 20px; margin-top: 14px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 600; font-size: 13px; color: var(--soft); }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; }
td small { color: var(--soft); }
.bar { display: inline-block; width: 110px; height: 7px; margin-right: 10px; border-radius: 4px;
  background: var(--line); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
img { display: block; width: 100%; }
.slices { border-radius: 5px; margin-bottom: 14px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 24px; }
.pair h4 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 0 0 6px; }
.pair p { font-size: 14px; }
.chip { display: inline-block; padding: 1px 9px; margin: 0 5px 6px 0; border-radius: 11px;
  font-size: 13px; background: var(--tint); }
.hit { background: var(--good); color: var(--good-ink); }
.miss { background: var(--bad); color: var(--bad-ink); }
footer { margin-top: 48px; font-size: 13px; border-top: 1px solid var(--line); padding-top: 12px; }
@media (max-width: 720px) { .pair { grid-template-columns: 1fr; } }
@media print { body { background: #fff; } .panel { break-inside: avoid; } }
"""
