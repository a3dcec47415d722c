// Agents: what they run, what they were told and took, how they capture and redirect, with the reasons.

import { html, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { all } from '../api.js';
import { ago, bytes, count, span } from '../format.js';
import { t, tn } from '../i18n.js';
import { Icon } from '../icons.js';
import { useData } from '../live.js';
import { adjust } from '../route.js';
import { Table, useOpen } from '../table.js';
import { Badge, Choice, Empty, Head, Ready, Tile } from '../ui.js';

/// What is not as it should be, in sentences.
function troubles(a) {
  const s = a.status;
  const out = [];
  if (a.lost) out.push(t('Not heard of for {time}', { time: span(a.heard_ms_ago) }));
  if (s.config_error) out.push(t('Configuration {wanted} is not applied: {error}', { wanted: s.config_wanted, error: s.config_error }));
  else if (s.config_wanted !== s.config_applied) out.push(t('Configuration {wanted} is not applied yet', { wanted: s.config_wanted }));
  if (a.applied_revision < a.wanted_revision) out.push(t('It took revision {applied} of {wanted}', { applied: a.applied_revision, wanted: a.wanted_revision }));
  return out.concat(s.held ?? []);
}

const how = (word, reason, good) => html`<span class=${`badge ${word === good ? 'ok' : word === 'off' || word === '' ? '' : 'info'}`} title=${reason}>${word || '–'}</span>${reason && html` <span class="faint clip" title=${reason}>${reason}</span>`}`;

/// The wanted one is only told when it is another.
const of = (applied, wanted) => (applied === wanted ? count(applied) : html`${count(applied)}<span class="faint"> / ${count(wanted)}</span>`);

const columns = (turn) => [
  { key: 'agent', label: t('Agent'), sort: (r) => r.agent, cell: (r, _, open) => html`<button class="plain open-row" aria-expanded=${open} onClick=${() => turn(r.agent)}><${Icon} name=${open ? 'down' : 'right'} />${r.agent}</button>` },
  { key: 'state', label: t('State'), sort: (r) => troubles(r).length + (r.lost ? 100 : 0), cell: (r) => {
    const n = troubles(r).length;
    return r.lost ? html`<${Badge} state="lost" />` : n > 0 ? html`<span class="badge warn" title=${troubles(r).join('\n')}>${tn(n, '{n} remark', '{n} remarks')}</span>` : html`<span class="badge ok">${t('well')}</span>`;
  } },
  { key: 'application', label: t('Application'), sort: (r) => r.status.application, cell: (r) => r.status.application || html`<span class="faint">–</span>` },
  { key: 'zone', label: t('Zone'), sort: (r) => r.status.zone, cell: (r) => r.status.zone || html`<span class="faint">–</span>` },
  { key: 'version', label: t('Version'), sort: (r) => r.status.version, cell: (r) => r.status.version },
  { key: 'capture', label: t('Capture'), sort: (r) => r.status.capture, cell: (r) => how(r.status.capture, r.status.capture_reason, 'ebpf') },
  { key: 'redirect', label: t('Redirect'), sort: (r) => r.status.redirect, cell: (r) => how(r.status.redirect, r.status.redirect_reason, 'on') },
  { key: 'config', label: t('Configuration'), right: true, title: t('Generation applied, of the one wanted'), sort: (r) => r.status.config_applied, cell: (r) => of(r.status.config_applied, r.status.config_wanted), tone: (r) => (r.status.config_applied === r.status.config_wanted ? '' : 'warn') },
  { key: 'revision', label: t('Revision'), right: true, title: t('Revision taken from the centre, of the newest it should have'), sort: (r) => r.applied_revision, cell: (r) => of(r.applied_revision, r.wanted_revision), tone: (r) => (r.applied_revision < r.wanted_revision ? 'warn' : '') },
  { key: 'connections', label: t('Connections'), right: true, sort: (r) => r.status.connections, cell: (r) => count(r.status.connections) },
  { key: 'memory', label: t('Memory'), right: true, sort: (r) => r.status.resident_bytes, cell: (r) => bytes(r.status.resident_bytes) },
  { key: 'heard', label: t('Report'), right: true, sort: (r) => r.heard_ms_ago, cell: (r) => ago(r.heard_ms_ago), tone: (r) => (r.lost ? 'bad' : 'faint') },
];

function Detail({ agent }) {
  const s = agent.status;
  return html`${troubles(agent).map((text) => html`<div class="notice"><${Icon} name="warn" /><p>${text}</p></div>`)}
    <dl class="pairs"><dt>${t('Kernel')}</dt><dd>${s.kernel || '–'}</dd><dt>${t('Capture')}</dt><dd>${s.capture} ${s.capture_reason}</dd>
    <dt>${t('Redirect')}</dt><dd>${s.redirect} ${s.redirect_reason}</dd><dt>${t('Registers')}</dt><dd>${count(agent.registrations)}</dd><dt>${t('Runs for')}</dt><dd>${span(s.uptime_seconds * 1000)}</dd>
    <dt>${t('Took')}</dt><dd>${t('epoch {epoch}, revision {revision}', s.seen)}</dd></dl>`;
}

export function Agents({ filter = '', which = '' }) {
  const list = useData((signal, part) => all('v1/agents', {}, part, signal), [], { every: 3000 });
  const [open, turn] = useOpen();
  const [text, setText] = useState(filter);
  const shown = useMemo(() => columns(turn), []);
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = useMemo(() => (list.data ?? []).filter((r) => {
    const s = r.status;
    const name = `${r.agent} ${s.application} ${s.zone} ${s.version} ${s.capture} ${s.redirect}`.toLowerCase();
    return words.every((w) => name.includes(w)) && (which !== 'trouble' || troubles(r).length > 0);
  }), [list.data, text, which]);
  return html`<${Head} title=${t('Agents')} />
    <${Ready} from=${list}>${(data) => (data.length === 0
      ? html`<${Empty} title=${t('No agent has reported yet')}><p>${t('An agent reports once its file names this centre:')}</p><pre>${'center:\n  address: [127.0.0.1:7480]'}</pre></${Empty}>`
      : html`<dl class="tiles"><${Tile} label=${t('Agents')} value=${count(data.length)} />
          <${Tile} label=${t('Not heard of')} value=${count(data.filter((a) => a.lost).length)} tone=${data.some((a) => a.lost) ? 'bad' : ''} />
          <${Tile} label=${t('With remarks')} value=${count(data.filter((a) => troubles(a).length > 0).length)} tone=${data.some((a) => troubles(a).length > 0) ? 'warn' : ''} />
          <${Tile} label=${t('Capture in the kernel')} value=${count(data.filter((a) => a.status.capture === 'ebpf').length)} />
          <${Tile} label=${t('Versions')} value=${[...new Set(data.map((a) => a.status.version))].sort().join(' · ') || '–'} /></dl>
        <div class="filters"><input type="search" data-filter aria-label=${t('Filter agents')} placeholder=${t('Filter agents  /')} value=${text} onInput=${(e) => setText(e.target.value)} />
          <${Choice} label=${t('Which')} value=${which} options=${[['', t('All')], ['trouble', t('With remarks')]]} set=${(v) => adjust({ which: v })} /></div>
        <${Table} name="agents" caption=${t('Agents')} columns=${shown} rows=${rows} rowKey=${(r) => r.agent} first=${{ key: 'state', down: true }} open=${open} detail=${(r) => html`<${Detail} agent=${r} />`}
          tone=${(r) => (r.lost ? 'row-bad' : troubles(r).length > 0 ? 'row-warn' : '')} empty=${html`<${Empty} title=${t('Nothing fits')} />`} />`)}</${Ready}>`;
}
