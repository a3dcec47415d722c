// What a command would do: to every group and endpoint, to callers, to the texts that agents read.

import { html, useMemo } from '../../../vendor/htm-preact-standalone.js';
import { count, percent, rate } from '../../format.js';
import { t } from '../../i18n.js';
import { Icon } from '../../icons.js';
import { Table } from '../../table.js';
import { Panel } from '../../ui.js';

/// Now and then on one scale, with what it can take as a mark.
function NowThen({ now, then, most, capacity, over }) {
  const at = (v) => `${Math.min(100, (v * 100) / most)}%`;
  return html`<span class=${`now-then ${over ? 'over' : ''}`}><u style=${{ width: at(now) }}></u><b style=${{ width: at(then) }}></b>${capacity ? html`<s style=${{ left: at(capacity) }}></s>` : ''}</span>`;
}

const columns = (most) => [
  { key: 'instance', label: t('Endpoint'), sort: (r) => r.instance, cell: (r) => html`<span class="num">${r.instance}</span>` },
  { key: 'group', label: t('Group'), sort: (r) => r.group, cell: (r) => r.group },
  { key: 'bar', label: t('Now and then'), cell: (r) => html`<${NowThen} now=${r.rate_now} then=${r.rate_then} most=${most} capacity=${r.capacity} over=${r.over} />` },
  { key: 'now', label: t('Now'), right: true, sort: (r) => r.rate_now, cell: (r) => rate(r.rate_now) },
  { key: 'then', label: t('Then'), right: true, sort: (r) => r.rate_then, cell: (r) => html`<strong>${rate(r.rate_then)}</strong>` },
  { key: 'capacity', label: t('Takes'), right: true, sort: (r) => r.capacity, cell: (r) => rate(r.capacity) },
  { key: 'over', label: html`<span class="unseen">${t('Too much')}</span>`, cell: (r) => r.over && html`<span class="badge bad">${t('too much')}</span>` },
];

/// Lines of two texts beside each other: those that go, those that come.
export function Difference({ change }) {
  const lines = (text) => (text ? pretty(text).split('\n') : []);
  const [before, after] = [lines(change.before), lines(change.after)];
  const kept = common(before, after);
  const rows = [];
  let [i, j] = [0, 0];
  for (const line of [...kept, null]) {
    while (i < before.length && before[i] !== line) rows.push(['-', before[i++]]);
    while (j < after.length && after[j] !== line) rows.push(['+', after[j++]]);
    if (line !== null) {
      rows.push([' ', line]);
      i += 1;
      j += 1;
    }
  }
  return html`<h3 class="scope">${change.scope}</h3>${rows.length === 0 ? html`<p class="hint">${t('no text')}</p>` : html`<pre class="diff">${rows.map(([sign, line]) => html`<span class=${{ '-': 'gone-line', '+': 'new-line' }[sign] ?? ''}>${sign} ${line}${'\n'}</span>`)}</pre>`}`;
}

const pretty = (text) => {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
};

/// The longest lines that both have in the same order; texts are short.
function common(a, b) {
  if (a.length * b.length > 1_000_000) return [];
  const best = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  }
  const out = [];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      out.push(a[i]);
      i += 1;
      j += 1;
    } else if (best[i + 1][j] >= best[i][j + 1]) i += 1;
    else j += 1;
  }
  return out;
}

export function Preview({ preview, busy, invalid }) {
  const most = Math.max(1e-9, ...(preview?.endpoints ?? []).flatMap((e) => [e.rate_now, e.rate_then, e.capacity ?? 0]));
  const shown = useMemo(() => columns(most), [most]);
  if (!preview) return html`<section class="panel"><header><h2>${t('What it would do')}</h2></header><p class="none-here">${invalid ?? (busy ? t('Reading…') : t('No preview'))}</p></section>`;
  const groups = new Map();
  for (const e of preview.endpoints) {
    const g = groups.get(e.group) ?? { group: e.group, now: 0, then: 0, capacity: 0, known: true, over: 0 };
    g.now += e.rate_now;
    g.then += e.rate_then;
    g.capacity += e.capacity ?? 0;
    g.known &&= e.capacity !== null && e.capacity !== undefined;
    g.over += e.over ? 1 : 0;
    groups.set(e.group, g);
  }
  const top = Math.max(1e-9, ...[...groups.values()].flatMap((g) => [g.now, g.then]));
  return html`<section class=${`panel preview ${busy ? 'busy' : ''}`}><header><h2>${t('What it would do')}</h2><span class="note">${t('worked out with the picking code of the agents, from the rates of now')}</span></header>
    <div class="body">
      ${preview.warnings.map((w) => html`<div class="notice"><${Icon} name="warn" /><p>${w}</p></div>`)}
      <table class="rows-only"><caption class="unseen">${t('Groups')}</caption><tbody>${[...groups.values()].map((g) => html`<tr><th scope="row"><strong>${g.group}</strong></th>
        <td class="wide"><${NowThen} now=${g.now} then=${g.then} most=${top} over=${g.over > 0} /></td>
        <td class="right">${rate(g.now)}</td><td aria-label=${t('then')}>→</td><td class="right"><strong>${rate(g.then)}</strong></td>
        <td class="right faint">${g.known && g.capacity > 0 ? t('{n} % of capacity', { n: percent((g.then * 100) / g.capacity) }) : ''}</td></tr>`)}</tbody></table>
      ${preview.services.length > 1 && html`<p class="hint">${t('{n} services fit: {names}', { n: count(preview.services.length), names: preview.services.slice(0, 12).join(', ') })}</p>`}
      <p class="callers"><span class="faint">${t('Callers touched')}</span> ${preview.callers.length === 0 ? t('none lately') : preview.callers.map(([name, r]) => html`<span class="badge">${name || t('(unknown)')} <span class="num">${rate(r)}/s</span></span> `)}</p>
    </div>
    ${preview.endpoints.length > 0 && html`<${Table} name="preview" caption=${t('Endpoints')} columns=${shown} rows=${preview.endpoints} rowKey=${(r) => r.group + r.instance} tone=${(r) => (r.over ? 'row-bad' : '')} />`}
    <details class="body"><summary>${t('Texts that agents read')} (${preview.changes.length})</summary>${preview.changes.map((change) => html`<${Difference} change=${change} />`)}</details></section>`;
}
