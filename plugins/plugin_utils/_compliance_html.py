# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report as one page that needs no network, no server and, to be read, no script.

Every text in it is escaped: a process chooses its name, and a host its words.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_page import SCRIPT, STYLE
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_report import (
    STATES,
    process_states,
    summary,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._fleet_report import worst

Values = dict[str, t.Any]

WORST_FIRST = tuple(reversed(STATES))
MEANING = {
    "patched": "all threads of all processes run the fix, as read from memory: mitigated in memory "
    "until restart",
    "pending": "a transition is open",
    "partial": "open past its timeout; the threads are named",
    "blocked": "a live patch would be refused; the reason is named",
    "unpatchable": "no live patch can exist",
    "vulnerable": "affected, and nothing is applied",
    "fixed": "the running image itself is a fixed build",
    "not_affected": "no running process maps an affected object",
    "unknown": "no evidence, or evidence past its limit",
}
FILES = {
    "replaced": "its file was replaced by another build",
    "deleted": "its file is deleted",
    "rebuilt": "installed again as the same build",
}
#: Reports of the past that a chart has room for.
CHARTED = 60


def _escape(value: t.Any) -> str:
    return html.escape("" if value is None else str(value))


def _tag(name: str, content: str = "", **attributes: t.Any) -> str:
    """An element; ``content`` is markup already, attributes are texts."""
    listed = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return f"<{name}{listed}>{content}</{name}>"


def _words(state: str) -> str:
    return state.replace("_", " ")


def _state(state: str) -> str:
    return _tag("span", _words(state), class_=f"state s-{state}", title=MEANING[state])


def _mark(text: str) -> str:
    return _tag("span", _escape(text), class_="mark")


def _time(text: str | None) -> str:
    if text is None:
        return "never"
    shown = text.replace("T", " ").replace("Z", " UTC")
    return _tag("time", shown, datetime=text, data_age=True) + ' <span class="soft"></span>'


def _table(heads: t.Sequence[str], rows: t.Iterable[str], caption: str = "") -> str:
    head = "".join(_tag("th", _escape(each), scope="col") for each in heads)
    body = "".join(rows)
    title = _tag("caption", _escape(caption)) if caption else ""
    return _tag(
        "div",
        f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or ", ".join(heads),
    )


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _facts(facts: t.Mapping[str, str]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items())
        + ("</dl>")
    )


def _bar(counts: t.Mapping[str, int], label: str) -> str:
    total = sum(counts.values()) or 1
    at, parts = 0.0, []
    for state in STATES:
        if counts.get(state):
            width = 100 * counts[state] / total
            parts.append(
                f'<rect class="s-{state}" x="{at:.3f}" y="0" width="{width:.3f}" height="4">'
                f"<title>{counts[state]} {_words(state)}</title></rect>"
            )
            at += width
    return (
        f'<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" role="img" '
        f'aria-label="{_escape(label)}">{"".join(parts)}</svg>'
    )


def _counted(counts: t.Mapping[str, int]) -> str:
    return ", ".join(f"{counts[s]} {_words(s)}" for s in WORST_FIRST if counts.get(s))


def _glance(report: Values) -> str:
    states, hosts = report["states"], report["hosts"]
    tiles = [
        _tag(
            "li",
            _tag(
                "button",
                f"<b>{states[state]}</b>{_state(state)}",
                class_="tile",
                type="button",
                data_state=state,
                aria_pressed="false",
                title=MEANING[state],
            ),
        )
        for state in WORST_FIRST
        if state in states
    ]
    for count, words in (
        (sum(host["flagged"] for host in hosts), "outdated images, not patched"),
        (sum(host["opted_out"] for host in hosts), "hosts opted out"),
        (sum(host["evidence"] is None for host in hosts), "hosts without evidence"),
    ):
        tiles.append(
            _tag("li", _tag("div", f"<b>{count}</b><span class=soft>{words}</span>", class_="tile"))
        )
    return (
        f"<section aria-labelledby=glance><h2 id=glance>{len(hosts)} hosts at a glance</h2>"
        f"<ul class=tiles>{''.join(tiles)}</ul>{_bar(states, _counted(states))}</section>"
    )


def _filter(report: Values) -> str:
    def options(values: t.Iterable[str]) -> str:
        return "<option value=''>all</option>" + "".join(
            _tag("option", _escape(_words(value)), value=value) for value in values
        )

    return (
        "<form class=filter id=filter hidden>"
        "<label>Search hosts, processes, packages, CVEs<input id=search type=search "
        "autocomplete=off></label>"
        f"<label>CVE<select id=cve>{options(cve['id'] for cve in report['cves'])}</select></label>"
        f"<label>State<select id=state>{options(WORST_FIRST)}</select></label>"
        "<button id=reset type=button>Show all</button>"
        "<output id=count aria-live=polite></output></form>"
    )


def _link(url: str, text: str) -> str:
    return _tag("a", _escape(text), href=url, rel="noreferrer noopener")


def _cve_table(report: Values) -> str:
    rows = []
    for cve in report["cves"]:
        references = " ".join(
            _link(url, f"[{number}]")
            for number, url in enumerate(cve["references"], 1)
            if url.startswith(("https://", "http://"))
        )
        rows.append(
            _row(
                f"<b>{_escape(cve['id'])}</b> {references}",
                _escape(cve["severity"]),
                _escape(", ".join(cve["packages"])),
                _escape(", ".join(cve["patches"]) or "none"),
                _escape(_counted(cve["states"])) + _bar(cve["states"], _counted(cve["states"])),
            )
        )
    return (
        "<section aria-labelledby=cves><h2 id=cves>CVEs</h2>"
        + _table(("CVE", "Severity", "Packages", "Patches", "Hosts"), rows)
        + "</section>"
    )


def _matrix(report: Values) -> str:
    head = "".join(
        _tag("th", _escape(cve["id"]), scope="col", data_cve=cve["id"]) for cve in report["cves"]
    )
    rows = []
    for number, host in enumerate(report["hosts"]):
        link = f"#host-{number}"
        cells = [
            _tag(
                "td",
                _tag("a", _state(row["state"]), href=link)
                + (" " + _mark("opted out") if row["opted_out"] else ""),
                data_cve=row["id"],
            )
            for row in host["cves"]
        ]
        name = _tag("th", _tag("a", _escape(host["name"]), href=link), scope="row")
        rows.append(_tag("tr", name + "".join(cells), data_host=f"host-{number}"))
    return (
        "<section aria-labelledby=matrix><h2 id=matrix>CVE by host</h2>"
        "<div class=scroll tabindex=0 role=region aria-labelledby=matrix><table class=matrix>"
        f"<thead><tr><th scope=col>Host</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></div></section>"
    )


def _why(state: Values) -> str:
    parts = [
        state["patch"] and f"patch {state['patch']}",
        state["reason"],
        state["ground"] and f"known by {_words(state['ground'])}",
        state["message"],
    ]
    return _escape("; ".join(part for part in parts if part))


def _threads(process: Values, reading: Values) -> str:
    straggling = {each["tid"]: each for each in reading["threads"]["stragglers"]}
    rows = []
    named = {thread["tid"]: thread["comm"] for thread in process["threads"]}
    named.update({tid: each["comm"] for tid, each in straggling.items()})
    done = reading["state"] == "patched"
    for tid, comm in sorted(named.items()):
        other = straggling.get(tid)
        if other:
            where = f"old code: {other['function'] or 'somewhere'} ({other['reason']})"
        else:
            where = "new code" if done else "not known to keep a transition open"
        rows.append(_row(str(tid), f"<code>{_escape(comm)}</code>", _escape(where)))
    counts = reading["threads"]
    caption = (
        f"Threads: {counts['total']}, of these {counts['migrated']} migrated, "
        f"{counts['quiescent']} quiescent, {len(straggling)} stragglers"
    )
    return _table(("Thread", "Name", "Runs"), rows, caption)


def _functions(reading: Values) -> str:
    rows = (
        _row(
            f"<code>{_escape(each['name'])}</code>",
            f"<code>{each['entry']:#x}</code>",
            _escape(each["leads_to"]),
            f"<code>{each['address']:#x}</code>" if each["address"] is not None else "unknown",
            _escape(each["patch"]),
        )
        for each in reading["functions"]
    )
    caption = f"Functions as read from memory, generation {reading['generation']}"
    return _table(("Function", "Entry", "Leads to", "Code at", "Patch"), rows, caption)


def _image(process: Values, item: Values) -> str:
    package = item["package"] or {}
    facts = {
        "File": f"<code>{_escape(item['path'])}</code>"
        + (f" {_escape(FILES[item['file']])}" if item["file"] in FILES else ""),
        "Build-id": f"<code>{_escape(item['build_id'] or 'none')}</code>",
    }
    if package:
        facts["Package"] = _escape(f"{package['name']} {package['version'] or ''}")
        if package["installed"] and package["installed"] != package["version"]:
            facts["Package"] += _escape(f" runs; {package['installed']} is installed")
    if item["unexplained"]:
        facts["In force besides"] = _mark(
            f"{', '.join(item['unexplained'])}: no manifest at hand is of it"
        )
    if item["flagged"]:
        facts["Restart"] = _mark("needed: outdated, and not patched in memory")
    elif item["outdated"]:
        facts["Restart"] = "due, but every CVE in question is patched in memory"
    text = _facts(facts)
    if item["cves"]:
        text += _table(
            ("CVE", "State", "Why"),
            (_row(_escape(c["id"]), _state(c["state"]), _why(c)) for c in item["cves"]),
        )
    reading = item["reading"]
    if reading:
        if reading["reason"]:
            text += f"<p>{_escape(reading['reason'])}: {_escape(reading['message'])}</p>"
        text += _functions(reading) + _threads(process, reading)
    return text


def _process(process: Values, out: t.Mapping[int, str]) -> str:
    states = process_states(process)
    flagged = any(item["flagged"] for item in process["objects"])
    marks = " ".join(
        _mark(text)
        for text in (
            f"opted out by {out[process['pid']]}" if process["pid"] in out else "",
            "restart needed" if flagged else "",
        )
        if text
    )
    user = process["user"] if process["user"] is not None else process["uid"]
    facts = {
        "Executable": f"<code>{_escape(process['exe'])}</code>",
        "Unit": _escape(process["unit"] or "none"),
        "User": _escape(user),
        "Start": f"{process['start_time']} clock ticks after boot",
    }
    head = (
        f"<b><code>{_escape(process['comm'])}[{process['pid']}]</code></b> "
        + (_state(worst(states.values())) if states else "")
        + f" {marks}"
    )
    return _tag(
        "details",
        f"<summary>{head}</summary><div>{_facts(facts)}"
        + "".join(_image(process, item) for item in process["objects"])
        + "</div>",
        class_="process",
    )


def _host_text(host: Values) -> str:
    """What the search looks at."""
    words = [host["name"], *(row["id"] for row in host["cves"])]
    for process in (host["evidence"] or {}).get("processes", ()):
        words += [process["comm"], process["exe"], process["unit"] or "", process["user"] or ""]
        for item in process["objects"]:
            words += [item["path"], (item["package"] or {}).get("name", "")]
    return " ".join(words).lower()


def _host_facts(host: Values) -> Values:
    evidence = host["evidence"]
    facts: Values = {}
    if host["reason"]:
        facts["Reason"] = f"{_escape(host['reason'])} {_escape(host['message'])}"
    if evidence is None:
        facts["Last evidence"] = _time(host["last_evidence"])
        return facts
    system, clock = evidence["host"]["system"], host["clock"]
    facts |= {
        "Evidence": f"{_time(host['evidence_time'])}, counts until {_escape(host['expires'])}",
        "Boot": f"<code>{_escape(evidence['host']['boot_id'])}</code>",
        "Kernel": _escape(f"{evidence['host']['kernel']} {evidence['host']['machine']}"),
        "System": _escape(f"{system['name']}, host name {evidence['host']['hostname']}"),
        "Clock": _escape(
            f"{clock['offset_us'] / 1e6:+.3f} s against the controller's, "
            f"give or take {clock['uncertainty_us'] / 1e6:.3f} s"
        ),
        "Applier": _escape(
            f"{evidence['applier']['version']}, backend {evidence['applier']['backend']}"
        ),
        "Patches": _escape(", ".join(patch["id"] for patch in evidence["patches"]) or "none"),
    }
    if evidence["refused"]:
        facts["Refused"] = _escape(
            "; ".join(
                f"{each['id'] or 'opt-outs'}: {each['reason']}" for each in evidence["refused"]
            )
        )
    return facts


def _host(number: int, host: Values) -> str:
    out = {each["pid"]: each["by"] for each in host["opted_out_processes"]}
    marks = [_mark("opted out")] if host["opted_out"] else []
    if host["flagged"]:
        marks.append(_mark(f"{host['flagged']} outdated"))
    marks.append(_tag("span", "stale", class_="mark old", hidden=not host["stale"]))
    states = _table(
        ("CVE", "State", "Reason"),
        (
            _row(
                _escape(row["id"]),
                _state(row["state"]) + (" " + _mark("opted out") if row["opted_out"] else ""),
                _escape(row["reason"]),
            )
            for row in host["cves"]
        ),
    )
    processes = (host["evidence"] or {}).get("processes", ())
    if processes:
        listed = "<h3>Processes</h3>" + "".join(_process(each, out) for each in processes)
    else:
        listed = "<p class=soft>No process has anything to tell.</p>" if host["evidence"] else ""
    if host["evidence_time"]:
        marks.append(
            _tag("time", "", datetime=host["evidence_time"], data_age=True, hidden=True)
            + '<span class="soft"></span>'
        )
    head = f"<b>{_escape(host['name'])}</b> {_state(host['state'])} {' '.join(marks)}"
    return _tag(
        "details",
        f"<summary>{head}</summary><div>{_facts(_host_facts(host))}{states}{listed}</div>",
        class_="host",
        id=f"host-{number}",
        data_state=host["state"],
        data_states=json.dumps({row["id"]: row["state"] for row in host["cves"]}),
        data_text=_host_text(host),
        data_expires=host["expires"] or "",
    )


def _trend(report: Values) -> str:
    past = [*report["history"], summary(report)][-CHARTED:]
    if len(past) < 2:
        return "<p class=soft>There is no earlier report to compare with.</p>"
    width, height, top, bottom = 720, 190, 12, 24
    most = max(sum(each["states"].values()) for each in past)
    step = width / len(past)
    bars = []
    for number, each in enumerate(past):
        at = float(height - bottom)
        for state in STATES:
            count = each["states"].get(state, 0)
            if count:
                tall = (height - top - bottom) * count / most
                at -= tall
                bars.append(
                    f'<rect class="s-{state}" x="{number * step + step * 0.1:.2f}" y="{at:.2f}" '
                    f'width="{step * 0.8:.2f}" height="{tall:.2f}"><title>'
                    f"{_escape(each['time'])}: {count} {_words(state)}</title></rect>"
                )
    ends = (
        f'<text x="2" y="{height - 7}">{_escape(past[0]["time"][:10])}</text>'
        f'<text x="{width - 2}" y="{height - 7}" text-anchor="end">'
        f"{_escape(past[-1]['time'][:10])}</text>"
    )
    rows = (
        _row(_escape(each["time"]), _escape(_counted(each["states"])), str(each["flagged"]))
        for each in reversed(past)
    )
    return (
        f'<figure><svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Hosts by state over {len(past)} reports">{"".join(bars)}{ends}</svg>'
        "<figcaption>Hosts by state in each report, the worst on top</figcaption></figure>"
        f"<details><summary>The {len(past)} reports as a table</summary><div>"
        + _table(("Report", "Hosts", "Outdated images"), rows)
        + "</div></details>"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def to_html(report: Values) -> str:
    """The page as text."""
    controller = report["controller"]
    policy = (
        f"default-src 'none'; style-src '{_digest(STYLE)}'; script-src '{_digest(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    legend = "".join(
        _tag("li", f"{_state(state)} <span class=soft>{_escape(MEANING[state])}</span>")
        for state in WORST_FIRST
    )
    incomplete = "" if report["complete"] else "<p>Not every host gave evidence.</p>"
    hosts = "".join(_host(number, host) for number, host in enumerate(report["hosts"]))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="robots" content="noindex">'
        f"<title>Live patches: {_escape(_words(report['state']))}</title>"
        f"<style>{STYLE}</style></head><body>"
        f"<header><h1>Live patch compliance {_state(report['state'])}</h1>"
        f"<p class=soft>Written {_time(report['time'])} on {_escape(controller['hostname'])}, "
        f"wfpatch.fleet {_escape(controller['collection'])}, "
        f"ansible-core {_escape(controller['ansible'])}. "
        f"Evidence counts for {report['evidence_limit']} seconds.</p>{incomplete}"
        "<p class=stale id=stale role=status hidden>Stale: evidence past its limit counts no more. "
        "Hosts: <span id=stale-count></span></p></header>"
        f"<main>{_glance(report)}{_filter(report)}{_matrix(report)}"
        f"<section aria-labelledby=hosts><h2 id=hosts>Hosts</h2>{hosts}</section>"
        f"{_cve_table(report)}"
        f"<section aria-labelledby=trends><h2 id=trends>Trends</h2>{_trend(report)}</section>"
        "</main>"
        f"<footer><h2>What the words mean</h2><ul class=legend>{legend}</ul>"
        f"<p>{_escape(report['scope'])}</p></footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )
