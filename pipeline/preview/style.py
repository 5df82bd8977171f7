"""The report's style sheet: black, red and a little gold, light or dark as the reader's system is.

Wide windows show tables; narrow ones show each row as a card, so that nothing scrolls sideways.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f8f5ef; --card: #fffdf9; --ink: #221c19; --muted: #6f645b; --line: #e5ddd1;
  --accent: #a12a1c; --gold: #9a7420; --good: #3b6b42; --shade: #f0eae0; --band: #191210;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131010; --card: #1c1716; --ink: #eee6dc; --muted: #a99c8f; --line: #352c29;
    --accent: #ec7a61; --gold: #d9ae57; --good: #8fc28f; --shade: #261f1e; --band: #0c0908;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
.wrap { max-width: 68rem; margin: 0 auto; padding: 0 1.5rem; }
main { padding-bottom: 5rem; }
h1, h2 { font-family: "Iowan Old Style", Palatino, Georgia, "DejaVu Serif", serif;
  font-weight: 600; line-height: 1.2; letter-spacing: -.01em; }
h2 { font-size: 1.55rem; margin: 3.6rem 0 .5rem; padding-top: .4rem; }
h2::before { content: ""; display: block; width: 2.2rem; height: 2px; background: var(--gold);
  margin-bottom: .9rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; font-weight: 650; }
p { margin: .4rem 0 .9rem; max-width: 46rem; text-wrap: pretty; }
a { color: inherit; }
.hint, figcaption, .legend { color: var(--muted); font-size: .9rem; }
.small { display: block; color: var(--muted); font-size: .85em; font-weight: 400; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }

header { background: var(--band); color: #f3eae0; border-bottom: 3px solid #a12a1c;
  box-shadow: inset 0 -1px 0 #d9ae57; padding: 2.6rem 0 2.2rem; }
header .eyebrow { color: #d9ae57; font-size: .82rem; letter-spacing: .08em; margin: 0 0 .5rem;
  text-transform: uppercase; }
h1 { font-size: clamp(2rem, 6vw, 3rem); margin: 0 0 1.1rem; overflow-wrap: anywhere; }
.verdict { font-size: clamp(1.12rem, 2.6vw, 1.4rem); line-height: 1.5; max-width: 52rem;
  margin: 0 0 1rem; }
.verdict b { color: #f0c76f; font-weight: 650; white-space: nowrap; }
.reasons { margin: 0 0 1.6rem; padding: 0; list-style: none; max-width: 52rem; color: #d8cbbd; }
.reasons li { padding: .28rem 0 .28rem 1.2rem; position: relative; }
.reasons li::before { content: ""; position: absolute; left: 0; top: 1em; width: .55rem;
  height: 1px; background: #d9ae57; }
.reasons b { color: #f3eae0; font-weight: 650; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); gap: 1px;
  margin: 0; background: #3a2c27; border: 1px solid #3a2c27; border-radius: 8px; overflow: hidden; }
.tiles div { background: #221916; padding: .8rem 1rem; }
.tiles dt { color: #b3a496; font-size: .8rem; }
.tiles dd { margin: .1rem 0 0; font-weight: 600; font-size: 1.08rem; line-height: 1.35;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.tiles dd .small { color: #b3a496; }
nav { border-bottom: 1px solid var(--line); font-size: .9rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0;
  padding: .7rem 0; }
nav a { color: var(--muted); text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--accent); text-decoration: underline; }

.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.3rem; margin: 1rem 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 1rem; margin: 1rem 0; }
.pair > .card, .plots > .card { margin: 0; }
.plots { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.plots.data { grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
figure { margin: 0; }
figure.card figcaption { margin-top: .5rem; }

table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .82rem;
  vertical-align: bottom; line-height: 1.35; }
th, td { padding: .55rem 1rem .55rem 0; }
tr > :last-child { padding-right: 0; }
tbody td, tbody th { border-top: 1px solid var(--line); vertical-align: baseline; }
tbody th { color: var(--ink); font-size: inherit; }
table.bare tr:first-child > * { border-top: 0; }
td, th, dd { font-variant-numeric: tabular-nums; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.word { display: none; }
tr.left-out td, tr.left-out th { color: var(--muted); }
.decision::before { content: ""; display: inline-block; width: .6em; height: .6em;
  border-radius: 50%; margin-right: .5em; background: var(--good); }
.decision.rejected::before { background: none; border: 2px solid var(--muted); }
.decision.always::before { background: var(--gold); }
.meter { width: 38%; }
.meter i { display: block; height: .5rem; border-radius: 3px; background: var(--gold);
  min-width: 2px; }

.compare { margin: 1.2rem 0; }
.compare .bar { display: flex; flex-wrap: wrap; justify-content: center; align-items: center;
  gap: .5rem .8rem; margin: .6rem 0; font-size: .9rem; color: var(--muted); }
.compare .one { flex-wrap: nowrap; }
.compare .shot { flex: 0 1 34rem; min-width: 0; }
select, button { font: inherit; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .35rem .6rem; max-width: 100%; }
.shot select { width: 100%; text-overflow: ellipsis; }
button { cursor: pointer; min-width: 2.4rem; }
:is(a, button, select, summary):focus-visible { outline: 2px solid var(--accent);
  outline-offset: 2px; }
.stage { position: relative; width: min(100%, 32rem, 76vh); margin: 0 auto; line-height: 0;
  border-radius: 6px; overflow: hidden; background: var(--shade); touch-action: pan-y; }
.stage:focus-within { outline: 2px solid var(--accent); outline-offset: 3px; }
.stage img { width: 100%; height: auto; display: block; }
.stage .over { position: absolute; inset: 0; height: 100%;
  clip-path: inset(0 calc(100% - var(--cut, 50%)) 0 0); }
.stage .divider { position: absolute; top: 0; bottom: 0; left: var(--cut, 50%); width: 2px;
  margin-left: -1px; background: #fff; box-shadow: 0 0 0 1px rgba(0, 0, 0, .45); }
.stage .divider::after { content: "\\2039\\a0\\203a"; position: absolute; top: 50%; left: 50%;
  transform: translate(-50%, -50%); background: #fff; color: #221c19; border-radius: 2rem;
  font: 600 1rem/1.9rem system-ui, sans-serif; padding: 0 .5rem .12rem; white-space: nowrap;
  box-shadow: 0 1px 5px rgba(0, 0, 0, .5); }
.stage span { position: absolute; bottom: .6rem; padding: .25rem .6rem; border-radius: 4px;
  background: rgba(18, 12, 10, .78); color: #fff; font-size: .8rem; line-height: 1.3; }
.stage .from { left: .6rem; }
.stage .to { right: .6rem; }
.stage input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; appearance: none; }
.stage input::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; }
.stage input::-moz-range-thumb { width: 1px; height: 100%; border: 0; }
.compare .hint { text-align: center; margin: .2rem auto 0; }
.strips { padding: 0 1.3rem; }
.strip { display: grid; grid-template-columns: 11rem repeat(var(--columns), minmax(0, 9.5rem));
  gap: .8rem; padding: 1.1rem 0; align-items: start; }
.strip + .strip { border-top: 1px solid var(--line); }
.strip .prompt { margin: 0; font-size: .92rem; line-height: 1.45; overflow-wrap: anywhere; }
.strip img { display: block; width: 100%; height: auto; border-radius: 4px; cursor: pointer; }
.strip figcaption { font-size: .82rem; line-height: 1.35; margin-top: .35rem; color: var(--ink); }
img.tiny { image-rendering: pixelated; }

.plot { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.plot text { fill: var(--muted); font-variant-numeric: tabular-nums; }
.plot .value { fill: var(--ink); }
.plot .axis { font-size: 11px; }
.plot path { fill: none; stroke-linejoin: round; }
.plot .rule { stroke: var(--line); }
.plot .zero { stroke: var(--muted); }
.plot .line { stroke: var(--accent); stroke-width: 2; }
.plot .second { stroke: var(--gold); stroke-width: 2; }
.plot .third { stroke: var(--good); stroke-width: 2; stroke-dasharray: 5 4; }
.plot .curve { stroke: var(--gold); stroke-width: 1.8; }
.plot .whisker { stroke: var(--accent); stroke-width: 1.3; }
.plot .faint { stroke: var(--muted); stroke-width: 1.1; stroke-dasharray: 2 2; }
.plot .chosen { stroke: var(--accent); stroke-width: 1; stroke-dasharray: 3 3; }
.plot .refitted { stroke: var(--gold); stroke-width: 1.6; }
.plot .point, .plot .bad { fill: var(--accent); }
.plot .mark { fill: var(--gold); }
.plot .better { fill: var(--good); }
.plot .hollow { fill: var(--card); stroke: var(--accent); stroke-width: 1.6; }
.key { display: inline-flex; align-items: center; gap: .4em; margin-right: 1.2em; }
.key::before { content: ""; width: 1em; height: 3px; border-radius: 2px;
  background: var(--accent); }
.key.gold::before { background: var(--gold); }
.key.good::before { background: var(--good); }

.bars { display: grid; gap: .3rem; margin: .5rem 0 0; padding: 0; list-style: none;
  font-size: .9rem; }
.bars li { display: grid; grid-template-columns: minmax(0, 1fr) 30% 3.4rem; gap: .7rem;
  align-items: center; }
.bars span { overflow-wrap: anywhere; line-height: 1.35; }
.bars i { display: block; height: .5rem; border-radius: 3px; background: var(--gold);
  min-width: 2px; }
.bars b { font-weight: 500; text-align: right; font-variant-numeric: tabular-nums; }
.names { columns: 13rem; column-gap: 1.6rem; margin: .6rem 0 0; padding: 0; list-style: none;
  font-size: .9rem; }
.names li { break-inside: avoid; overflow-wrap: anywhere; padding: .12rem 0; }
.heat td { padding: .3rem .2rem; text-align: center; font-size: .82rem; border: 0; }
.heat th { padding: .3rem .8rem .3rem 0; font-weight: 500; }
.heat td i { display: block; border-radius: 4px; padding: .1rem .1rem; font-style: normal; }

code, pre { font: .86em/1.6 ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", monospace; }
pre code { font-size: 1em; }
code { overflow-wrap: anywhere; }
pre { background: var(--shade); border-radius: 8px; padding: 1rem 1.2rem; margin: .6rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.digest { color: var(--muted); font-size: .78rem; overflow-wrap: anywhere; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
dl.legend dt { color: var(--ink); font-weight: 600; }
dl.legend dd { margin: 0 0 .5rem; max-width: 46rem; }

@media (max-width: 68rem) {
  table.stack { display: block; }
  table.stack tbody { display: grid; gap: 0 2.4rem;
    grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
  table.stack thead { display: none; }
  table.stack tr { display: block; padding: .8rem 0; margin-top: -1px;
    border-top: 1px solid var(--line); }
  table.stack :is(td, th) { display: flex; justify-content: space-between; gap: 1rem; border: 0;
    padding: .16rem 0; text-align: right; white-space: normal; }
  table.stack tbody th { font-size: 1.02rem; justify-content: flex-start; gap: 0; }
  table.stack :is(td, th)[data-name]::before { content: attr(data-name); color: var(--muted);
    font-weight: 400; text-align: left; white-space: nowrap; }
  table.stack .small { display: inline; }
  table.stack .word { display: inline; white-space: pre; }
}
@media (max-width: 46rem) {
  .wrap { padding: 0 1rem; }
  header { padding: 1.7rem 0 1.5rem; }
  h2 { margin-top: 2.6rem; font-size: 1.35rem; }
  .card { padding: .9rem 1rem; }
  .strips { padding: 0 1rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .strip { grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); gap: .6rem; }
  .strip .prompt { grid-column: 1 / -1; }
  .meter { display: none; }
}
@media print {
  header { background: none; color: #000; box-shadow: none; }
  header *, .verdict b { color: #000 !important; }
  .tiles, .tiles div { background: none; border-color: #bbb; }
  .compare, nav { display: none; }
  body { background: none; font-size: 11pt; }
  .card, .strip, figure { break-inside: avoid; }
  details > * { display: block; }
}
"""
