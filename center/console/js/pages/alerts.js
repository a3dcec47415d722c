// What is not as it should be, what says so, and who is told.

import { html, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { all, get, post, put, remove, session } from '../api.js';
import { clock, ms, parseSpan, percent, rate, share, span } from '../format.js';
import { t } from '../i18n.js';
import { Icon } from '../icons.js';
import { now, useData } from '../live.js';
import { Plot } from '../plot.js';
import { adjust, href } from '../route.js';
import { Table, useOpen } from '../table.js';
import { Ask, Badge, Choice, Empty, Head, Problem, Ready, attempt, say } from '../ui.js';

const FIGURES = { rate: ['Calls/s', rate], success: ['Success %', (v) => share(v)], slow: ['Slow %', (v) => share(v)], mean_ms: ['Mean ms', ms], p50_ms: ['p50 ms', ms], p99_ms: ['p99 ms', ms], p999_ms: ['p99.9 ms', ms] };
const percentage = (figure) => figure === 'success' || figure === 'slow';
const about = (of) => [of.group, of.service, of.instance, of.caller && `← ${of.caller}`].filter(Boolean).join(' / ') || t('each service');

/// When a rule fires, in a sentence.
export function when(c) {
  const name = t(FIGURES[c.figure]?.[0] ?? c.figure ?? '');
  switch (c.kind) {
    case 'threshold': return [c.above !== null && c.above !== undefined && t('{name} above {value}', { name, value: FIGURES[c.figure]?.[1](c.above) }), c.below !== null && c.below !== undefined && t('{name} below {value}', { name, value: FIGURES[c.figure]?.[1](c.below) })].filter(Boolean).join(t(' or ')) + t(' for {time}', { time: span(c.for_ms) });
    case 'burn_rate': return t('the budget of {n} % is spent {factor} times too fast over {long} and {short}', { n: c.objective_percent, factor: c.factor, long: span(c.long_ms), short: span(c.short_ms) });
    case 'forecast': return t('{name} outside of the band of {n} % forecast from earlier days', { name, n: c.level_percent });
    case 'outlier': return t('{name} of one instance differs from its siblings (sensitivity {n})', { name, n: c.sensitivity });
    case 'water': return t('a pool above its {line} line', { line: t(c.line) });
    default: return c.kind;
  }
}

/// The series that raised an alert, with its band.
function Raised({ id, rule }) {
  const read = useData((signal) => get(`v1/alerts/${encodeURIComponent(id)}`, {}, signal), [id], { every: 10_000 });
  return html`<${Ready} from=${read}>${(alert) => {
    const s = alert.series;
    const figure = rule?.condition.figure ?? (rule?.condition.kind === 'burn_rate' ? 'success' : Object.keys(FIGURES).find((f) => (s?.[f] ?? []).some((v) => v !== null)));
    const [name, format] = FIGURES[figure] ?? [];
    const since = [{ at: alert.since_ms, label: t('since') }, ...(alert.until_ms ? [{ at: alert.until_ms, label: t('over') }] : [])];
    const c = rule?.condition;
    const lines = c?.kind === 'threshold' ? [c.above, c.below].filter((v) => v !== null && v !== undefined).map((value) => ({ value: value * (percentage(c.figure) ? 100 : 1), label: t('bound'), tone: '--bad-fill' })) : [];
    // Shares are drawn in percent.
    const scale = figure === 'success' || figure === 'slow' ? 100 : 1;
    const shown = scale === 1 ? format : (v) => percent(v, 2);
    const times = (v) => (v === null || v === undefined ? null : v * scale);
    const values = (s?.[figure] ?? []).map(times);
    const band = (alert.band ?? []).map(([low, high]) => [times(low), times(high)]);
    const known = values.concat(band.flat(), lines.map((l) => l.value)).filter((v) => v !== null);
    const least = known.length > 0 ? Math.min(...known) : 0;
    return html`${s && name && html`<div class="panel"><${Plot} title=${t(name)} unit=${about(alert.of)} times=${s.at_ms} from=${s.at_ms[0] - 60_000} to=${s.at_ms.at(-1)} format=${shown} marks=${since} lines=${lines} floor=${figure === 'success' ? Math.max(0, least - (100 - least) * 0.2) : 0}
        ceiling=${figure === 'success' ? 100 : undefined} band=${band.length === s.at_ms.length ? band : undefined} sync=${id} series=${[{ label: t('seen'), color: 0, values }]} /></div>`}
      <dl class="pairs"><dt>${t('Rule')}</dt><dd>${alert.rule}${c && html`: ${when(c)}`}</dd>
        ${alert.told.map(([where, answer]) => html`<dt>${t('Told')}</dt><dd>${where} <span class="faint">${answer}</span></dd>`)}</dl>`;
  }}</${Ready}>`;
}

const columns = (turn, ask) => [
  { key: 'rule', label: t('Rule'), sort: (r) => r.rule, cell: (r, _, open) => html`<button class="plain open-row" aria-expanded=${open} onClick=${() => turn(r.id)}><${Icon} name=${open ? 'down' : 'right'} />${r.rule}</button>` },
  { key: 'state', label: t('State'), sort: (r) => ['firing', 'silenced', 'resolved'].indexOf(r.state), cell: (r) => html`<${Badge} state=${r.state} />` },
  { key: 'severity', label: t('Severity'), sort: (r) => r.severity, cell: (r) => (r.severity ? html`<${Badge} state=${r.severity} />` : '') },
  { key: 'of', label: t('About'), sort: (r) => about(r.of), cell: (r) => (r.of.service ? html`<a href=${href('service', { service: r.of.service, group: r.of.group, range: '1h' })}>${about(r.of)}</a>` : about(r.of)) },
  { key: 'summary', wrap: true, label: t('What'), cell: (r) => r.summary },
  { key: 'since', label: t('Since'), right: true, sort: (r) => r.since_ms, cell: (r) => clock(r.since_ms) },
  { key: 'for', label: t('Lasts'), right: true, sort: (r) => (r.until_ms ?? now()) - r.since_ms, cell: (r) => span((r.until_ms ?? now()) - r.since_ms) },
  { key: 'act', label: html`<span class="unseen">${t('Actions')}</span>`, right: true, cell: (r) => r.state === 'firing' && session.may('operator', r.of.group || '*') && html`<span class="deeds"><button onClick=${() => ask({ rule: r.rule, service: r.of.service, group: r.of.group })}>${t('Silence…')}</button></span>` },
];

function Found({ rows, rules, silence, filter }) {
  const [open, turn] = useOpen();
  const [text, setText] = useState(filter);
  const shown = useMemo(() => columns(turn, silence), []);
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = useMemo(() => rows.filter((r) => {
    const name = `${r.rule} ${r.summary} ${about(r.of)} ${r.state} ${r.severity}`.toLowerCase();
    return words.every((w) => name.includes(w));
  }), [rows, text]);
  if (rows.length === 0) return html`<${Empty} title=${t('Nothing fires')}><p>${t('And nothing has fired lately. What is looked at stands under Rules.')}</p></${Empty}>`;
  return html`<div class="filters"><input type="search" data-filter aria-label=${t('Filter alerts')} placeholder=${t('Filter alerts  /')} value=${text} onInput=${(e) => setText(e.target.value)} /></div>
    <${Table} name="alerts" caption=${t('Alerts')} columns=${shown} rows=${fitting} rowKey=${(r) => r.id} first=${{ key: 'state' }} open=${open} tone=${(r) => (r.state === 'firing' ? (r.severity === 'page' ? 'row-bad' : 'row-warn') : '')}
      detail=${(r) => html`<${Raised} id=${r.id} rule=${rules.find((x) => x.name === r.rule)} />`} empty=${html`<${Empty} title=${t('Nothing fits')} />`} />`;
}

/// A rule, new or changed.
function Rule({ rule, onClose, reload }) {
  const c = rule?.condition ?? { kind: 'threshold', figure: 'p99_ms', above: 100, for_ms: 60_000 };
  const number = (text) => (text === '' || text === null || text === undefined ? null : Number(text));
  const shown = (v) => (v === null || v === undefined ? '' : percentage(c.figure) ? v * 100 : v);
  const given = (v, figure) => (number(v) === null ? null : percentage(figure) ? Number(v) / 100 : Number(v));
  const time = (text) => {
    const value = parseSpan(text);
    if (value === null) throw new Error(t('{name}: a time such as 30 s, 5 min or 2 h', { name: text }));
    return value;
  };
  const act = async (v) => {
    const condition = {
      threshold: () => ({ kind: v.kind, figure: v.figure, above: given(v.above, v.figure), below: given(v.below, v.figure), for_ms: time(v.for) }),
      burn_rate: () => ({ kind: v.kind, objective_percent: Number(v.objective), long_ms: time(v.long), short_ms: time(v.short), factor: Number(v.factor) }),
      forecast: () => ({ kind: v.kind, figure: v.figure, level_percent: Number(v.level) }),
      outlier: () => ({ kind: v.kind, figure: v.figure, sensitivity: Number(v.sensitivity) }),
      water: () => ({ kind: v.kind, line: v.line }),
    }[v.kind]();
    await put('v1/alerts/rules', { name: v.name, of: { ...(rule?.of ?? {}), service: v.service, group: v.group }, condition, severity: v.severity, webhooks: v.webhooks.split(/\s+/).filter(Boolean) });
    say(t('Rule {name} is written', v));
    reload();
  };
  const [kind, setKind] = useState(c.kind);
  const figures = Object.entries(FIGURES).map(([k, [n]]) => [k, t(n)]);
  const figure = { name: 'figure', label: t('Figure'), kind: 'select', options: figures, value: c.figure ?? 'p99_ms' };
  const parts = {
    threshold: [figure, { name: 'above', label: t('Above'), kind: 'number', step: 'any', value: shown(c.above) }, { name: 'below', label: t('Below'), kind: 'number', step: 'any', value: shown(c.below) }, { name: 'for', label: t('For'), value: span(c.for_ms ?? 60_000) }],
    burn_rate: [{ name: 'objective', label: t('Objective, %'), kind: 'number', step: 'any', value: c.objective_percent ?? 99.9 }, { name: 'long', label: t('Long window'), value: span(c.long_ms ?? 3_600_000) }, { name: 'short', label: t('Short window'), value: span(c.short_ms ?? 300_000) }, { name: 'factor', label: t('Times too fast'), kind: 'number', step: 'any', value: c.factor ?? 14.4 }],
    forecast: [figure, { name: 'level', label: t('Band, %'), kind: 'number', step: 'any', value: c.level_percent ?? 99 }],
    outlier: [figure, { name: 'sensitivity', label: t('Sensitivity, 0 to 1'), kind: 'number', step: 'any', min: 0, max: 1, value: c.sensitivity ?? 0.5 }],
    water: [{ name: 'line', label: t('Line'), kind: 'select', options: [['warning', t('warning')], ['fatal', t('fatal')]], value: c.line ?? 'warning' }],
  };
  const kinds = [['threshold', t('Threshold')], ['burn_rate', t('Burn rate')], ['forecast', t('Forecast')], ['outlier', t('Outlier')], ['water', t('Water level')]];
  return html`<${Ask} key=${kind} title=${rule ? t('Rule {name}', rule) : t('New rule')} verb=${t('Save')} act=${(v) => act({ ...v, kind })} onClose=${onClose} fields=${[
    { name: 'name', label: t('Name'), value: rule?.name ?? '', required: true, disabled: Boolean(rule) },
    { name: 'service', label: t('Service'), value: rule?.of?.service ?? '', hint: t('Empty: each service by itself') }, { name: 'group', label: t('Group'), value: rule?.of?.group ?? '' },
    ...parts[kind],
    { name: 'severity', label: t('Severity'), kind: 'select', options: [['page', t('page')], ['ticket', t('ticket')]], value: rule?.severity || 'ticket' },
    { name: 'webhooks', label: t('Webhooks'), kind: 'area', value: (rule?.webhooks ?? []).join('\n'), hint: t('An address on each line') },
  ]}>${() => html`<${Choice} label=${t('Kind')} value=${kind} options=${kinds} set=${setKind} /><div class="gap"></div>`}</${Ask}>`;
}

function Rules({ read, ask }) {
  const may = session.may('admin', '*');
  const shown = useMemo(() => [
    { key: 'name', label: t('Name'), sort: (r) => r.name, cell: (r) => r.name },
    { key: 'when', wrap: true, label: t('Fires when'), cell: (r) => when(r.condition) },
    { key: 'of', label: t('Of'), sort: (r) => about(r.of), cell: (r) => about(r.of) },
    { key: 'severity', label: t('Severity'), sort: (r) => r.severity, cell: (r) => r.severity && html`<${Badge} state=${r.severity} />` },
    { key: 'webhooks', label: t('Webhooks'), right: true, cell: (r) => html`<span title=${r.webhooks.join('\n')}>${r.webhooks.length}</span>` },
    { key: 'act', label: html`<span class="unseen">${t('Actions')}</span>`, right: true, cell: (r) => may && html`<span class="deeds"><button onClick=${() => ask({ rule: r })}>${t('Change…')}</button><button onClick=${() => ask({ gone: r })}>${t('Delete…')}</button></span>` },
  ], [may]);
  return html`<${Ready} from=${read}>${(rules) => html`<${Table} name="rules" caption=${t('Rules')} columns=${shown} rows=${rules} rowKey=${(r) => r.name} first=${{ key: 'name' }} empty=${html`<${Empty} title=${t('No rule is written')} />`} />`}</${Ready}>`;
}

function Silences({ read, reload }) {
  const end = (s) => attempt(() => remove(`v1/alerts/silences/${s.id}`), t('The silence is ended')).then(reload);
  const shown = useMemo(() => [
    { key: 'what', label: t('Silenced'), cell: (r) => [r.rule || t('any rule'), r.group, r.service].filter(Boolean).join(' / ') },
    { key: 'until', label: t('Until'), sort: (r) => r.until_ms, cell: (r) => clock(r.until_ms) },
    { key: 'author', label: t('By'), cell: (r) => r.author },
    { key: 'reason', wrap: true, label: t('Reason'), cell: (r) => r.reason },
    { key: 'act', label: html`<span class="unseen">${t('Actions')}</span>`, right: true, cell: (r) => session.may('operator', r.group || '*') && html`<span class="deeds"><button onClick=${() => end(r)}>${t('End')}</button></span>` },
  ], []);
  return html`<${Ready} from=${read}>${(rows) => html`<${Table} name="silences" caption=${t('Silences')} columns=${shown} rows=${rows} rowKey=${(r) => r.id} empty=${html`<${Empty} title=${t('Nothing is silenced')} />`} />`}</${Ready}>`;
}

export function Alerts({ filter = '', tab = '' }) {
  const found = useData((signal) => all('v1/alerts', {}, undefined, signal), [], { every: 5000, on: ['alerts'] });
  const rules = useData((signal) => all('v1/alerts/rules', {}, undefined, signal), []);
  const silences = useData((signal) => all('v1/alerts/silences', {}, undefined, signal), [], { every: 30_000 });
  const [asked, ask] = useState(null);
  const again = () => { found.reload(); rules.reload(); silences.reload(); };
  const silence = async (v) => {
    const length = parseSpan(v.length);
    if (length === null) throw new Error(t('{name}: a time such as 30 s, 5 min or 2 h', { name: v.length }));
    await post('v1/alerts/silences', { rule: v.rule, service: v.service, group: v.group, reason: v.reason, until_ms: Math.floor(now() + length) });
    again();
  };
  const tabs = [['', t('Alerts'), found.data?.filter((a) => a.state === 'firing').length], ['rules', t('Rules'), rules.data?.length], ['silences', t('Silences'), silences.data?.length]];
  return html`<${Head} title=${t('Alerts')}>
      ${tab === 'rules' && session.mayAnywhere('admin') && html`<button class="primary" onClick=${() => ask({ rule: null })}><${Icon} name="plus" /> ${t('New rule')}</button>`}
      ${tab !== 'rules' && session.mayAnywhere('operator') && html`<button onClick=${() => ask({ silence: {} })}>${t('Silence…')}</button>`}</${Head}>
    <nav class="tabs" aria-label=${t('Alerts')}>${tabs.map(([key, name, n]) => html`<a href=${href('alerts', { tab: key })} aria-current=${key === tab ? 'page' : undefined}>${name} <span class="num">${n ?? ''}</span></a>`)}</nav>
    ${tab === '' && html`<${Ready} from=${found}>${(rows) => html`<${Found} rows=${rows} rules=${rules.data ?? []} silence=${(s) => ask({ silence: s })} filter=${filter} />`}</${Ready}>`}
    ${tab === 'rules' && html`<${Rules} read=${rules} ask=${ask} />`}
    ${tab === 'silences' && html`<${Silences} read=${silences} reload=${again} />`}
    ${asked?.silence && html`<${Ask} title=${t('Silence')} text=${t('Nobody is told of alerts that fit; they are shown as silenced.')} verb=${t('Silence')} act=${silence} onClose=${() => ask(null)} fields=${[
      { name: 'rule', label: t('Rule'), value: asked.silence.rule ?? '', list: (rules.data ?? []).map((r) => r.name), hint: t('Empty: any') }, { name: 'service', label: t('Service'), value: asked.silence.service ?? '', hint: t('Empty: any') },
      { name: 'group', label: t('Group'), value: asked.silence.group ?? '', hint: t('Empty: any') }, { name: 'length', label: t('For'), value: '1 h', required: true, list: ['30 min', '1 h', '8 h', '3 d'] }, { name: 'reason', label: t('Reason'), required: true, autofocus: true }]} />`}
    ${asked && 'rule' in asked && html`<${Rule} rule=${asked.rule} reload=${again} onClose=${() => ask(null)} />`}
    ${asked?.gone && html`<${Ask} title=${t('Delete rule {name}?', asked.gone)} text=${t('Its alerts end.')} verb=${t('Delete')} danger act=${async () => { await remove(`v1/alerts/rules/${encodeURIComponent(asked.gone.name)}`); again(); }} onClose=${() => ask(null)} />`}`;
}
