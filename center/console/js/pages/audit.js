// What was done by everyone, granted or refused.

import { html, useEffect, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { get } from '../api.js';
import { clock } from '../format.js';
import { t } from '../i18n.js';
import { Icon } from '../icons.js';
import { useData } from '../live.js';
import { Table, useOpen } from '../table.js';
import { Empty, Head, Ready, attempt } from '../ui.js';

const columns = (turn) => [
  { key: 'id', label: '#', cell: (r, _, open) => html`<button class="plain open-row num" aria-expanded=${open} onClick=${() => turn(r.id)}><${Icon} name=${open ? 'down' : 'right'} />${r.id}</button>` },
  { key: 'at', label: t('When'), cell: (r) => html`<span class="num one-line">${clock(r.at_ms)}</span>` },
  { key: 'actor', label: t('Who'), cell: (r) => r.actor },
  { key: 'from', label: t('From where'), cell: (r) => html`<span class="faint num">${r.from || '–'}</span>` },
  { key: 'what', label: t('What'), cell: (r) => html`<span class="mono">${r.what}</span>` },
  { key: 'target', label: t('On'), cell: (r) => html`<span class="clip wide-clip" title=${r.target}>${r.target || '–'}</span>` },
  { key: 'outcome', label: t('Outcome'), cell: (r) => html`<span class=${`badge ${r.outcome === 'ok' ? 'ok' : 'bad'}`}>${r.outcome === 'ok' ? t('done') : r.outcome}</span>` },
];

/// A page of entries; the centre itself searches, so that any of a million is found.
const page = (wanted, after, signal) => get('v1/audit', { limit: 200, ...wanted, after }, signal);

export function Audit() {
  const [wanted, want] = useState({ actor: '', what: '', target: '' });
  const newest = useData((signal) => page(wanted, undefined, signal), [wanted.actor, wanted.what, wanted.target], { every: 5000 });
  const [older, setOlder] = useState({ items: [], next: undefined });
  const [open, turn] = useOpen();
  const shown = useMemo(() => columns(turn), []);
  const rows = useMemo(() => {
    const seen = new Map();
    for (const entry of [...(newest.data?.items ?? []), ...older.items]) seen.set(entry.id, entry);
    return [...seen.values()].sort((a, b) => b.id - a.id);
  }, [newest.data, older]);
  const next = older.next === undefined ? newest.data?.next : older.next;
  const more = () => attempt(async () => {
    const got = await page(wanted, next);
    setOlder((s) => ({ items: s.items.concat(got.items), next: got.next ?? null }));
  });
  return html`<${Head} title=${t('Audit')} sub=${t('Every call that changed something or was refused, durable before it was answered.')} />
    <div class="filters">${[['actor', t('Who'), ''], ['what', t('What begins with'), 'command.'], ['target', t('On what contains'), 'com.shop']].map(([name, label, example], i) => html`<input type="search" key=${name} data-filter=${i === 0 ? true : undefined} aria-label=${label} placeholder=${label + (example ? `: ${example}` : '')}
      onChange=${(e) => { setOlder({ items: [], next: undefined }); want((w) => ({ ...w, [name]: e.target.value.trim() })); }} />`)}</div>
    <${Ready} from=${newest}>${() => html`
        <${Table} name="audit" caption=${t('Audit')} columns=${shown} rows=${rows} rowKey=${(r) => r.id} open=${open} tone=${(r) => (r.outcome === 'ok' ? '' : 'row-bad')}
          detail=${(r) => html`<pre>${JSON.stringify(r.detail, null, 1)}</pre>`} empty=${html`<${Empty} title=${wanted.actor || wanted.what || wanted.target ? t('Nothing fits') : t('Nothing was done yet')} />`} />
        ${next && html`<p class="rest"><button onClick=${more}>${t('Older ones')}</button></p>`}`}</${Ready}>`;
}
