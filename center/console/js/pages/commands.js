// What was ordered: by whom, why, how it went, and undoing it.

import { html, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { get, session } from '../api.js';
import { clock, ms, percent, rate, share, span } from '../format.js';
import { t } from '../i18n.js';
import { Icon } from '../icons.js';
import { useData } from '../live.js';
import { adjust, href, useRoute } from '../route.js';
import { Table } from '../table.js';
import { Badge, Choice, Empty, Head, Panel, Ready } from '../ui.js';
import { Deeds, Steps, groupOf, guardText, sentence, serviceOf } from './parts/cards.js';
import { Curves } from './parts/curves.js';
import { Difference } from './parts/preview.js';

const columns = (reload) => [
  { key: 'id', label: '#', sort: (r) => r.id, cell: (r) => html`<a class="num" href=${href('command', { id: r.id })}>#${r.id}</a>` },
  { key: 'state', label: t('State'), sort: (r) => r.state, cell: (r) => html`<${Badge} state=${r.state} />` },
  { key: 'service', label: t('Service'), sort: (r) => serviceOf(r.asked.action), cell: (r) => serviceOf(r.asked.action) || html`<span class="faint">–</span>` },
  { key: 'what', wrap: true, label: t('What'), cell: (r) => sentence(r.asked.action) },
  { key: 'reason', label: t('Reason'), cell: (r) => html`<span class="clip wide-clip" title=${r.asked.reason}>${r.asked.reason}</span>` },
  { key: 'author', label: t('By'), sort: (r) => r.author, cell: (r) => r.author },
  { key: 'at', label: t('Given'), right: true, sort: (r) => r.at_ms, cell: (r) => clock(r.at_ms) },
  { key: 'end', label: t('Ended'), sort: (r) => r.ended?.[0], cell: (r) => (r.ended ? html`<span class="one-line" title=${r.ended[2]}>${clock(r.ended[0])} <span class="faint">${r.ended[1]}</span></span>` : r.until_ms ? html`<span class="faint one-line">${t('at {time}', { time: clock(r.until_ms) })}</span>` : '') },
  { key: 'act', label: html`<span class="unseen">${t('Actions')}</span>`, right: true, cell: (r) => html`<${Deeds} command=${r} reload=${reload} />` },
];

const WHICH = [['', 'All'], ['open', 'In force'], ['proposed', 'Proposed'], ['ended', 'Ended']];
const ENDED = ['undone', 'failed', 'expired', 'done'];
const fits = (which, state) => which === '' || (which === 'open' ? state === 'active' || state === 'stepping' : which === 'proposed' ? state === 'proposed' : ENDED.includes(state));

export function Commands({ filter = '', which = '' }) {
  const [text, setText] = useState(filter);
  const [pages, more] = useState(1);
  const list = useData(async (signal) => {
    let items = [];
    let after;
    for (let i = 0; i < pages; i += 1) {
      const page = await get('v1/commands', { limit: 200, after }, signal);
      if (Array.isArray(page)) return { items: page, next: null };
      items = items.concat(page.items);
      after = page.next;
      if (!after) break;
    }
    return { items, next: after };
  }, [pages], { every: 5000, on: ['commands'] });
  const shown = useMemo(() => columns(() => list.reload()), []);
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = useMemo(() => (list.data?.items ?? []).filter((r) => {
    const name = `#${r.id} ${serviceOf(r.asked.action)} ${sentence(r.asked.action)} ${r.author} ${r.asked.reason}`.toLowerCase();
    return fits(which, r.state) && words.every((w) => name.includes(w));
  }), [list.data, text, which]);
  return html`<${Head} title=${t('Commands')}>${session.mayAnywhere('operator') && html`<a class="button primary" data-move href=${href('switch')}><${Icon} name="plus" />${t('New command')}</a>`}</${Head}>
    <${Ready} from=${list}>${(data) => (data.items.length === 0
      ? html`<${Empty} title=${t('No command was ever given')}><p>${t('Switches of traffic, canaries, rules, degrade and drains appear here with author, reason, steps and what they changed, and are undone here.')}</p></${Empty}>`
      : html`<div class="filters"><input type="search" data-filter aria-label=${t('Filter commands')} placeholder=${t('Filter commands  /')} value=${text} onInput=${(e) => setText(e.target.value)} />
          <${Choice} label=${t('Which')} value=${which} options=${WHICH.map(([k, n]) => [k, t(n)])} set=${(v) => adjust({ which: v })} /></div>
        <${Table} name="commands" caption=${t('Commands')} columns=${shown} rows=${rows} rowKey=${(r) => r.id} first=${{ key: 'id', down: true }} tone=${(r) => (r.state === 'failed' ? 'row-bad' : '')}
          empty=${html`<${Empty} title=${t('Nothing fits')} />`} />
        ${data.next && html`<p class="rest"><button onClick=${() => more(pages + 1)}>${t('Older ones')}</button></p>`}`)}</${Ready}>`;
}

/// Steps with the figures before each.
function Taken({ steps }) {
  if (steps.length === 0) return null;
  return html`<${Panel} id="steps" title=${t('Steps taken')} note=${t('with the figures just before each')}><div class="table"><table class="rows-only"><caption class="unseen">${t('Steps taken')}</caption>
    <thead><tr><th scope="col">${t('When')}</th><th scope="col" class="right">${t('Change')}</th><th scope="col" class="right">${t('Calls/s')}</th><th scope="col" class="right">${t('Success %')}</th><th scope="col" class="right">${t('p99 ms')}</th></tr></thead>
    <tbody>${steps.map((s) => html`<tr><th scope="row" class="num">${clock(s.at_ms)}</th><td class="right">${percent(s.percent)} %</td><td class="right">${rate(s.before?.rate)}</td><td class="right">${share(s.before?.success)}</td><td class="right">${ms(s.before?.p99_ms)}</td></tr>`)}</tbody></table></div></${Panel}>`;
}

function Story({ command, reload }) {
  const { asked } = command;
  const service = serviceOf(asked.action);
  const page = useData((signal) => (service && !service.includes('*') ? get('v1/service', { service, group: groupOf(asked.action) }, signal).catch(() => null) : Promise.resolve(null)), [service], { every: 10_000 });
  const over = ENDED.includes(command.state);
  return html`<div class="story"><${Steps} command=${command} /><${Badge} state=${command.state} /><${Deeds} command=${command} reload=${reload} /></div>
    ${page.data && html`<${Curves} of=${{ service }} groups=${page.data.groups} group=${groupOf(asked.action)} range=${Date.now() - command.at_ms > 900_000 ? '1h' : Date.now() - command.at_ms > 280_000 ? '15m' : '5m'} commands=${[command]} pool=${page.data.pool} />`}
    <div class="split"><${Panel} id="order" title=${t('Order')}><div class="body"><dl class="pairs">
        <dt>${t('Service')}</dt><dd>${service ? (service.includes('*') ? service : html`<a href=${href('service', { service, group: groupOf(asked.action) })}>${service}</a>`) : '–'}</dd>
        <dt>${t('What')}</dt><dd>${sentence(asked.action)}</dd>
        ${asked.action.rules && html`<dt>${t('Rules')}</dt><dd class="mono">${asked.action.rules.map((r) => html`<div>${r}</div>`)}</dd>`}
        <dt>${t('By')}</dt><dd>${command.author}</dd><dt>${t('Given')}</dt><dd>${clock(command.at_ms)}</dd><dt>${t('Reason')}</dt><dd>${asked.reason}</dd>
        ${asked.steps.length > 0 && html`<dt>${t('Each step')}</dt><dd>${span(asked.step_ms ?? 30_000)}</dd>`}
        ${asked.guard && html`<dt>${t('Guard')}</dt><dd>${guardText(asked.guard)}</dd>`}
        ${command.until_ms && html`<dt>${command.state === 'proposed' ? t('Waits until') : t('Holds until')}</dt><dd>${clock(command.until_ms)}</dd>`}
        ${command.ended && html`<dt>${t('Ended')}</dt><dd>${clock(command.ended[0])}, ${command.ended[1]}: ${command.ended[2] || '–'}</dd>`}
        ${command.written.map(([where, how]) => html`<dt>${where}</dt><dd class=${how === 'ok' ? '' : 'bad'}>${how}</dd>`)}</dl></div></${Panel}>
      <${Taken} steps=${command.steps} /></div>
    ${asked.action.kind !== 'scale' && html`<${Panel} id="texts" title=${t('Texts that it changed')}><div class="body">${command.changes.length === 0 ? html`<p class="faint">${over ? t('It changed none.') : t('None yet.')}</p>` : command.changes.map((change) => html`<${Difference} change=${change} />`)}</div></${Panel}>`}`;
}

export function Command({ id }) {
  const read = useData((signal) => get(`v1/commands/${encodeURIComponent(id)}`, {}, signal), [id], { every: 2000, on: ['commands'] });
  return html`<${Head} title=${read.data ? `#${id} ${sentence(read.data.asked.action)}` : `#${id}`} crumbs=${html`<a href="#/commands">${t('Commands')}</a>`} sub=${read.data?.asked.reason} />
    <${Ready} from=${read}>${(command) => html`<${Story} command=${command} reload=${read.reload} />`}</${Ready}>`;
}
