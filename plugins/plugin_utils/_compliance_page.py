# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Style and script of the report's page. Both stand in the page itself, which needs no network; its
content security policy names them by their digests and allows nothing else.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1c2024; --soft: #5b6570; --line: #d9dde1;
  --accent: #1f5fa8;
  --good: #11643a; --good-back: #dff3e6; --calm: #2f5d7c; --calm-back: #e2eef6;
  --warn: #7a5200; --warn-back: #fdf0cf; --bad: #9c1c1c; --bad-back: #fbe0de;
  --worse: #ffffff; --worse-back: #a51d1d; --dim: #4c4f69; --dim-back: #e8e7ef;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2126; --ink: #e8eaed; --soft: #a2acb7; --line: #363d45;
    --accent: #86b7ee;
    --good: #8fdcb0; --good-back: #14382a; --calm: #a5cfea; --calm-back: #1b3342;
    --warn: #f1cd7c; --warn-back: #41320c; --bad: #ffb0a8; --bad-back: #4a1d1c;
    --worse: #ffffff; --worse-back: #b3302b; --dim: #c7c6de; --dim-back: #2f3040;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header, footer { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .3rem 0; }
a { color: var(--accent); }
.soft, dt, caption, figcaption { color: var(--soft); }
.soft, caption, figcaption { font-size: .9rem; }
caption { text-align: left; padding: .4rem .7rem 0; }
code, .mono { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace;
  font-size: .86em; overflow-wrap: anywhere; }
.stale { background: var(--warn-back); color: var(--warn); border-left: 4px solid;
  padding: .6rem .9rem; margin: 1rem 0; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: .6rem;
  margin: 0; padding: 0; list-style: none; }
.tile { display: block; width: 100%; text-align: left; font: inherit; padding: .6rem .8rem;
  color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
button.tile { cursor: pointer; }
button.tile[aria-pressed="true"] { outline: 3px solid var(--accent); }
.tile b { display: block; font-size: 1.7rem; line-height: 1.15; }
.bar { width: 100%; height: 1rem; display: block; border-radius: .5rem; margin: .9rem 0 0; }
.filter { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: end; margin: 1.4rem 0 0;
  padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.filter label { display: grid; gap: .2rem; font-size: .9rem; color: var(--soft); flex: 1 1 11rem; }
.filter input, .filter select, .filter button { font: inherit; color: var(--ink);
  min-height: 2.6rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: .35rem; padding: .3rem .6rem; width: 100%; }
.filter button { width: auto; cursor: pointer; }
.filter output { flex: 1 1 100%; font-size: .9rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem;
  border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; color: var(--soft); white-space: nowrap; }
.matrix tbody th { position: sticky; left: 0; background: var(--card); font-weight: 600;
  max-width: 11rem; overflow-wrap: anywhere; }
.matrix td { white-space: nowrap; }
.matrix td a { text-decoration: none; }
.state { display: inline-block; padding: .05rem .5rem; border-radius: .8rem; font-size: .85rem;
  font-weight: 600; white-space: nowrap; color: var(--dim); background: var(--dim-back); }
.s-patched, .s-fixed { color: var(--good); background: var(--good-back); }
.s-not_affected { color: var(--calm); background: var(--calm-back); }
.s-pending, .s-partial { color: var(--warn); background: var(--warn-back); }
.s-blocked, .s-unpatchable { color: var(--bad); background: var(--bad-back); }
.s-vulnerable { color: var(--worse); background: var(--worse-back); }
.mark { font-size: .8rem; color: var(--warn); font-weight: 600; white-space: nowrap; }
rect.s-patched, rect.s-fixed { fill: #2a8f59; } rect.s-fixed { fill: #58b985; }
rect.s-not_affected { fill: #8bb4cf; } rect.s-unknown { fill: #8d8fa6; }
rect.s-pending { fill: #f0c75b; } rect.s-partial { fill: #d99a1f; }
rect.s-unpatchable { fill: #b7656b; } rect.s-blocked { fill: #cf4b46; }
rect.s-vulnerable { fill: #a51d1d; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  margin: .5rem 0; }
details > summary { cursor: pointer; padding: .6rem .8rem; display: flex; flex-wrap: wrap;
  gap: .2rem .7rem; align-items: baseline; }
details > summary::before { content: "\\25b8"; color: var(--soft); }
details[open] > summary::before { content: "\\25be"; }
details > summary::-webkit-details-marker { display: none; }
details > div { padding: 0 .8rem .8rem; }
details details { background: var(--paper); }
summary b { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem;
  margin: .3rem 0 .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.chart { width: 100%; height: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
.chart text { fill: var(--soft); font-size: 11px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem .5rem; list-style: none; padding: 0; }
footer { margin-top: 3rem; padding-bottom: 2rem; border-top: 1px solid var(--line); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
[hidden] { display: none !important; }
@media (max-width: 40rem) {
  th, td { padding: .35rem .5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dt { margin-top: .3rem; }
  .matrix tbody th { max-width: 7.5rem; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --soft: #333;
    --line: #bbb; }
  body { font-size: 11px; }
  .filter, .only-screen { display: none; }
  .scroll { overflow: visible; border: 0; }
  details { break-inside: auto; }
  summary, tr, .tile { break-inside: avoid; }
  .state { border: 1px solid currentColor; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .matrix tbody th { position: static; }
}
"""

SCRIPT = """
"use strict";
(function () {
  const $ = (id) => document.getElementById(id);
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const search = $("search"), cve = $("cve"), state = $("state"), count = $("count");
  const hosts = all("details.host"), rows = all(".matrix tbody tr");
  const tiles = all("button.tile");

  function age(seconds) {
    const steps = [[86400, "d"], [3600, "h"], [60, "min"]];
    for (const [size, unit] of steps) {
      if (seconds >= size) { return Math.floor(seconds / size) + " " + unit + " old"; }
    }
    return Math.max(0, Math.floor(seconds)) + " s old";
  }

  function tick() {
    const now = Date.now();
    for (const item of all("time[data-age]")) {
      const made = Date.parse(item.dateTime);
      item.nextElementSibling.textContent = "(" + age((now - made) / 1000) + ")";
    }
    let stale = 0;
    for (const host of hosts) {
      const old = host.dataset.expires !== "" && Date.parse(host.dataset.expires) < now;
      host.querySelector(".old").hidden = !old;
      stale += old ? 1 : 0;
    }
    $("stale").hidden = stale === 0;
    $("stale-count").textContent = stale;
  }

  function fits(item) {
    const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
    const states = JSON.parse(item.dataset.states);
    const found = cve.value === "" ? [item.dataset.state] : [states[cve.value]];
    return words.every((word) => item.dataset.text.includes(word)) &&
      (state.value === "" || found.includes(state.value));
  }

  function apply() {
    let shown = 0;
    const visible = {};
    for (const host of hosts) {
      host.hidden = !fits(host);
      visible[host.id] = !host.hidden;
      shown += host.hidden ? 0 : 1;
    }
    for (const row of rows) { row.hidden = !visible[row.dataset.host]; }
    for (const cell of all(".matrix [data-cve]")) {
      cell.hidden = cve.value !== "" && cell.dataset.cve !== cve.value;
    }
    for (const tile of tiles) {
      tile.setAttribute("aria-pressed", String(tile.dataset.state === state.value));
    }
    count.textContent = shown + " of " + hosts.length + " hosts shown";
  }

  function open() {
    let target = location.hash.length > 1 ? $(decodeURIComponent(location.hash.slice(1))) : null;
    if (!target) { return; }
    for (let item = target; item; item = item.parentElement) {
      if (item.tagName === "DETAILS") { item.open = true; item.hidden = false; }
    }
    target.scrollIntoView();
  }

  for (const input of [search, cve, state]) { input.addEventListener("input", apply); }
  for (const tile of tiles) {
    tile.addEventListener("click", function () {
      state.value = state.value === tile.dataset.state ? "" : tile.dataset.state;
      cve.value = "";
      apply();
    });
  }
  $("reset").addEventListener("click", function () {
    search.value = cve.value = state.value = "";
    apply();
    search.focus();
  });
  addEventListener("hashchange", open);
  let closed = [];
  addEventListener("beforeprint", function () {
    closed = all("details:not([open])");
    for (const item of closed) { item.open = true; }
  });
  addEventListener("afterprint", function () {
    for (const item of closed) { item.open = false; }
  });
  $("filter").hidden = false;
  tick();
  setInterval(tick, 60000);
  apply();
  open();
})();
"""
