"""The frame and the style sheet of a report, both inside the page."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --strong: #4d4d4d; --line: #d8dee4;
  --blue: #0072b2; --curve: #0072b2; --box: #cfe3f1; --plain: #e7eaee;
  --shadow: #0005; --good: #c9ecdf; --bad: #fad9c8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e6e9ed; --soft: #a3adb8; --strong: #c3cad2; --line: #363e48;
    --blue: #4aa8e0; --curve: #8c9eff; --box: #264a61; --plain: #2b323a;
    --shadow: #fff6; --good: #17503b; --bad: #6b3318; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 12px; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 40px 0 6px; }
h3 { font-size: 1rem; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 80ch; }
a { color: var(--blue); }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
.about, .note, figcaption { color: var(--soft); font-size: .92rem; }
.verdict { border-left: 5px solid var(--blue); padding: 8px 0 8px 18px; margin: 18px 0; }
.lead { font-size: 1.12rem; font-weight: 600; margin-top: 14px; }
.lead:first-child { margin-top: 6px; }
.warning { border-left: 5px solid #d55e00; padding-left: 18px; }
nav ul { columns: 16rem; margin: 6px 0; padding-left: 20px; }
nav li { break-inside: avoid; }
.scroll { overflow-x: auto; margin: 8px 0; max-width: 100%; background:
    linear-gradient(to right, var(--paper) 40%, transparent) left / 40px 100% no-repeat local,
    linear-gradient(to left, var(--paper) 40%, transparent) right / 40px 100% no-repeat local,
    linear-gradient(to right, var(--shadow), transparent) left / 14px 100% no-repeat scroll,
    linear-gradient(to left, var(--shadow), transparent) right / 14px 100% no-repeat scroll; }
.hint { display: none; color: var(--soft); font-size: .85rem; margin-bottom: 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 5.2em; }
td[style] { padding-left: 8px; padding-right: 8px; }
tr.strong td { font-weight: 700; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 20px; }
figure { margin: 8px 0; max-width: 560px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); }
details { border-bottom: 1px solid var(--line); padding: 8px 0; }
summary { cursor: pointer; }
.badge { display: inline-block; border-radius: 10px; padding: 0 10px; font-size: .85rem; background: var(--plain); }
.badge.supported { background: var(--good); }
.badge.contradicted { background: var(--bad); }
@media (max-width: 800px) { .hint.middle { display: block; } }
@media (max-width: 600px) {
  .hint.narrow { display: block; }
  .scroll th:first-child, .scroll td:first-child { max-width: 40vw; overflow-wrap: anywhere; }
  main { padding: 16px 14px 48px; }
  h1 { font-size: 1.35rem; }
  .verdict { padding-left: 12px; }
  td { white-space: normal; min-width: 6.5em; }
}
@media print { details > * { display: block; } nav { display: none; } }
"""
