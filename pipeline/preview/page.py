"""The report's frame: one HTML page with its style inside, light or dark as the reader's system is.

Nothing is loaded from anywhere and nothing runs: pictures are data URIs, there is no script.
"""

from html import escape

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f4ef; --card: #fffdfa; --ink: #261f1c; --muted: #75695f; --line: #e4dcd1;
  --accent: #a8321f; --gold: #a97c22; --good: #3d6b3a; --shade: #f1ebe2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141010; --card: #1d1817; --ink: #efe7dd; --muted: #a99b8e; --line: #372e2b;
    --accent: #ea7259; --gold: #dfb155; --good: #93c48d; --shade: #272020;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 70rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
header { border-bottom: 3px double var(--gold); padding-bottom: 2rem; margin-bottom: 2.5rem; }
.eyebrow { color: var(--muted); font-size: .9rem; margin: 0 0 .2rem; }
h1, h2 { font-family: "Iowan Old Style", Palatino, Georgia, "DejaVu Serif", serif;
  font-weight: 600; line-height: 1.25; }
h1 { font-size: 2.4rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.45rem; margin: 3.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 54rem; text-wrap: pretty; }
.verdict { font-size: 1.25rem; line-height: 1.5; max-width: 58rem; margin: 0 0 .5rem; }
.verdict b { color: var(--accent); font-weight: 650; white-space: nowrap; }
.hint, figcaption, .legend { color: var(--muted); font-size: .92rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.6rem; margin: 1.6rem 0 0; }
.facts dt { color: var(--muted); font-size: .85rem; }
.facts dd { margin: 0; font-weight: 600; font-size: 1.05rem; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.3rem; margin: 1rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .85rem;
  vertical-align: bottom; line-height: 1.35; }
th, td { padding: .5rem 1rem .5rem 0; }
tr > :last-child { padding-right: 0; }
tbody td, tbody th { border-top: 1px solid var(--line); vertical-align: baseline; }
table.bare tr:first-child > * { border-top: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody th { color: var(--ink); font-size: inherit; vertical-align: baseline; white-space: nowrap; }
tr.left-out td, tr.left-out th { color: var(--muted); }
.small { display: block; color: var(--muted); font-size: .85em; }
.decision { white-space: nowrap; }
.decision::before { content: ""; display: inline-block; width: .6em; height: .6em;
  border-radius: 50%; margin-right: .5em; background: var(--good); }
.decision.rejected::before { background: none; border: 2px solid var(--muted); }
.decision.always::before { background: var(--gold); }
table.samples { width: auto; border-collapse: separate; border-spacing: 0; }
table.samples th, table.samples td { border: 0; padding: 0 .6rem .6rem 0; vertical-align: top; }
table.samples thead th { color: var(--ink); font-size: .95rem; white-space: nowrap; }
table.samples thead .small { font-weight: 400; }
table.samples tbody th { position: sticky; left: 0; background: var(--card); width: 13rem;
  min-width: 8.5rem; font-weight: 400; font-size: .9rem; line-height: 1.4; padding-right: 1.1rem;
  white-space: normal; }
table.samples tbody tr:last-child > * { padding-bottom: 0; }
table.samples img { display: block; width: 10.2rem; max-width: 40vw; height: auto;
  border-radius: 4px; }
table.many img { width: 7.4rem; }
img.tiny { image-rendering: pixelated; }
.plot { display: block; width: 100%; height: auto; font-family: inherit; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.plot.wide { min-width: 34rem; }
figure { margin: 1rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: 1rem; }
.plots .card { margin: 0; }
code, pre { font: .88em/1.55 ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", monospace; }
pre code { font-size: 1em; }
code { overflow-wrap: anywhere; }
pre { background: var(--shade); border-radius: 8px; padding: 1rem 1.2rem; overflow-x: auto;
  margin: .6rem 0; }
.digest { color: var(--muted); font-size: .78rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
dl.legend dt { color: var(--ink); font-weight: 600; }
dl.legend dd { margin: 0 0 .5rem; max-width: 54rem; }
.meter { width: 42%; min-width: 8rem; }
.meter i { display: inline-block; height: .55rem; border-radius: 3px; background: var(--gold);
  min-width: 2px; }
@media (max-width: 40rem) {
  main { padding: 1.6rem 1rem 3rem; }
  h1 { font-size: 1.9rem; }
  .verdict { font-size: 1.1rem; }
  table.samples tbody th { width: 8.5rem; }
}
@media print { body { background: none; } .card { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document around `body`, which is HTML already; `title` is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
